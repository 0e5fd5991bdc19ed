#include "tests/sim/sim_worker.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace offshoot::sim {

SimWorker::SimWorker(World& world, int number, int devices)
    : world_(world), number_(number), id_(absl::StrCat("wrk-", number)), devices_(devices) {
  if (world.options().on_disk) {
    disk_ = *worker::RunJournal::Open(
        absl::StrCat(world.options().directory, "/worker", number, "/attempts"));
  }
}

SimWorker::~SimWorker() {
  if (link_ != nullptr) link_->Abandon();
}

void SimWorker::Later(absl::Duration delay, std::function<void()> action) {
  world_.After(delay, [this, incarnation = incarnation_, action = std::move(action)] {
    if (incarnation == incarnation_ && up()) action();
  });
}

void SimWorker::Start() {
  if (up()) return;
  world_.Note(absl::StrCat(id_.value(), " starts"));
  ++incarnation_;
  worker::AgentOptions options;
  options.worker_id = id_.value();
  options.incarnation_id = absl::StrCat("inc-", incarnation_);
  options.name = absl::StrCat("node", number_);
  options.version = "sim";
  options.address = absl::StrCat("10.0.0.", number_ + 1);
  options.labels = {{"rack", absl::StrCat("r", number_ % 2)}};
  options.limits.stop_timeout = absl::Seconds(40);
  options.limits.progress_timeout = absl::Seconds(45);
  options.limits.preflight_timeout = absl::Seconds(60);
  for (int i = 0; i < devices_; ++i) {
    v1::Device* device = options.inventory.add_devices();
    device->set_device_id(absl::StrCat("cpu:", i));
    device->set_kind("cpu");
    device->set_threads(1 + number_ % 2);  // two sorts of devices
    device->set_memory_bytes(std::int64_t{8} << 30);
  }
  agent_ = std::make_unique<worker::Agent>(
      options, [this] { return static_cast<double>(world_.Below(1000)) / 1000; });
  Do(agent_->Start(Recovered(), world_.now()));
  Later(world_.Delay(1'000, 10'000), [this] { Lie(); });
}

std::vector<worker::RecoveredAttempt> SimWorker::Recovered() {
  std::vector<worker::RecoveredAttempt> recovered;
  if (disk_ == nullptr) {
    for (const auto& [key, kept] : kept_) {
      recovered.push_back(
          {kept.assignment, kept.events, kept.acknowledged, kept.checkpoint, kept.last_step});
    }
    return recovered;
  }
  auto entries = disk_->Load();
  if (!entries.ok()) {
    world_.audit().Fail(JobId("*"), absl::StrCat("the journal of ", id_.value(),
                                                 " cannot be read: ", entries.status().ToString()));
    return recovered;
  }
  std::map<worker::AttemptKey, Kept> found;
  for (worker::RunJournal::Entry& entry : *entries) {
    const v1::Assignment& assignment = entry.attempt.assignment;
    const worker::AttemptKey key{JobId(assignment.job_id()), AttemptNumber{assignment.attempt()}};
    Kept& kept = found[key] = kept_[key];
    kept.assignment = assignment;
    kept.events = entry.attempt.events;
    entry.attempt.newest_checkpoint = kept.checkpoint;
    entry.attempt.last_step = kept.last_step;
    recovered.push_back(std::move(entry.attempt));
  }
  kept_ = std::move(found);
  // A directory's order is not the seed's.
  std::sort(recovered.begin(), recovered.end(), [](const auto& one, const auto& other) {
    return std::pair(one.assignment.job_id(), one.assignment.attempt()) <
           std::pair(other.assignment.job_id(), other.assignment.attempt());
  });
  return recovered;
}

void SimWorker::Crash(bool whole_machine) {
  if (!up()) return;
  world_.Note(absl::StrCat(id_.value(), whole_machine ? "'s machine crashes" : " crashes"));
  if (link_ != nullptr) {
    link_->Abandon();
    link_->Break(absl::ZeroDuration(), world_.Delay(1, 20'000));
    link_.reset();
  }
  ++incarnation_;  // nothing that was to be done later is done
  agent_.reset();
  trainers_.clear();
  tasks_.clear();
  occupied_.clear();
  next_tick_ = absl::InfiniteFuture();
  if (!whole_machine) return;
  // Assignments are not synced: those of late are gone, and with them all of the attempt.
  for (auto it = kept_.begin(); it != kept_.end();) {
    if (world_.Below(2) == 0) {
      if (disk_ != nullptr) disk_->Remove(it->first).IgnoreError();
      it = kept_.erase(it);
    } else {
      ++it;
    }
  }
}

void SimWorker::Do(worker::AgentEffects effects) {
  for (worker::AgentEffect& effect : effects) {
    if (std::holds_alternative<worker::Connect>(effect)) {
      if (link_ != nullptr) link_->Abandon();
      link_ = std::make_shared<SimLink>(world_, *this);
      link_->Open();
    } else if (std::holds_alternative<worker::Disconnect>(effect)) {
      if (link_ != nullptr) link_->Break(absl::Milliseconds(1), world_.Delay(1, 1'000));
    } else if (auto* send = std::get_if<worker::SendMessage>(&effect)) {
      if (link_ != nullptr) link_->SendUp(std::move(send->message));
    } else if (const auto* begin = std::get_if<worker::BeginAttempt>(&effect)) {
      kept_[begin->key] = Kept{begin->assignment, {}, 0, std::nullopt, 0};
      if (disk_ != nullptr) disk_->Begin(begin->key, begin->assignment).IgnoreError();
    } else if (const auto* persist = std::get_if<worker::PersistEvent>(&effect)) {
      Persist(*persist);
    } else if (const auto* ack = std::get_if<worker::RecordAck>(&effect)) {
      Kept& kept = kept_[ack->key];
      kept.acknowledged = std::max(kept.acknowledged, ack->sequence);
      if (disk_ != nullptr) disk_->RecordAck(ack->key, ack->sequence).IgnoreError();
    } else if (const auto* run = std::get_if<worker::RunAction>(&effect)) {
      Carry(run->key, run->action);
    } else if (const auto* forget = std::get_if<worker::ForgetAttempt>(&effect)) {
      kept_.erase(forget->key);
      trainers_.erase(forget->key);
      tasks_.erase(forget->key);
      if (disk_ != nullptr) disk_->Remove(forget->key).IgnoreError();
    }
  }
  ScheduleTick();
}

void SimWorker::Persist(const worker::PersistEvent& persist) {
  if (world_.Chance(10) && link_ != nullptr) link_->StallUp(world_.Delay(10, 25'000));
  if (world_.Chance(3)) return;  // the disk is full: it is only in memory
  kept_[persist.key].events.push_back(persist.event);
  if (disk_ != nullptr) disk_->AppendEvent(persist.key, persist.event).IgnoreError();
}

void SimWorker::ScheduleTick() {
  if (!up()) return;
  const absl::Time deadline = std::max(agent_->deadline(), world_.now());
  if (deadline >= next_tick_ || deadline == absl::InfiniteFuture()) return;
  next_tick_ = deadline;
  Later(deadline - world_.now(), [this, deadline] {
    if (next_tick_ != deadline) return;
    next_tick_ = absl::InfiniteFuture();
    Do(agent_->OnTick(world_.now()));
  });
}

void SimWorker::Input(const worker::AttemptKey& key, const worker::AttemptInput& input) {
  if (agent_->Holds(key)) Do(agent_->OnAttempt(key, input, world_.now()));
}

void SimWorker::Say(const worker::AttemptKey& key, worker::TrainerEvent event) {
  Input(key, worker::TrainerSaid{0, std::move(event)});
}

void SimWorker::SayWhatRanksDo(const worker::AttemptKey& key, std::int64_t step,
                               worker::TrainerActivity::Waiting waiting) {
  worker::TrainerActivity activity;
  activity.step = step;
  activity.doing = "forward";
  activity.waiting = waiting;
  const int ranks = kept_[key].assignment.device_ids_size();
  for (int rank = 0; rank < ranks; ++rank) Input(key, worker::TrainerSaid{rank, activity});
}

void SimWorker::Carry(const worker::AttemptKey& key, const worker::AttemptAction& action) {
  if (std::holds_alternative<worker::PrepareInputs>(action)) {
    tasks_[key].insert(worker::AttemptTask::kPrepareInputs);
    Later(world_.Delay(50, 3'000), [this, key] {
      if (tasks_[key].erase(worker::AttemptTask::kPrepareInputs) == 0) return;
      if (world_.Chance(20)) {
        Input(key, worker::TaskFailed{worker::AttemptTask::kPrepareInputs,
                                      absl::ResourceExhaustedError("the disk is full")});
      } else {
        Input(key, worker::InputsReady{});
      }
    });
  } else if (std::holds_alternative<worker::LaunchTrainer>(action)) {
    Launch(key, /*verify=*/false);
  } else if (std::holds_alternative<worker::LaunchVerify>(action)) {
    Launch(key, /*verify=*/true);
  } else if (const auto* checkpoint = std::get_if<worker::UploadCheckpoint>(&action)) {
    tasks_[key].insert(worker::AttemptTask::kUploadCheckpoint);
    Upload(key, checkpoint->step, /*result=*/false);
  } else if (std::holds_alternative<worker::UploadResult>(action)) {
    tasks_[key].insert(worker::AttemptTask::kUploadResult);
    Upload(key, 0, /*result=*/true);
  } else if (const auto* control = std::get_if<worker::SendControl>(&action)) {
    if (absl::StrContains(control->line, "\"stop\"")) trainers_[key].stop_asked = true;
    const nlohmann::json line = nlohmann::json::parse(control->line);
    if (line.at("command") == "contribution")
      trainers_[key].heard[line.at("round")].insert(line.at("rank").get<int>());
  } else if (const auto* store = std::get_if<worker::StoreContribution>(&action)) {
    v1::File file;
    file.set_digest(world_.artifact().digest);
    file.set_size_bytes(world_.artifact().size_bytes);
    Exchange(key, worker::ContributionStored{store->rank, store->round, file, store->path});
  } else if (const auto* fetch = std::get_if<worker::FetchContribution>(&action)) {
    Exchange(key, worker::ContributionFetched{fetch->rank, fetch->round, "/part"});
  } else if (std::holds_alternative<worker::TerminateTrainer>(action)) {
    Later(world_.Delay(50, 4'000), [this, key, life = trainers_[key].life] {
      if (trainers_[key].life == life) Exit(key, 15, /*signalled=*/true);
    });
  } else if (std::holds_alternative<worker::CancelTasks>(action)) {
    for (const worker::AttemptTask task : std::exchange(tasks_[key], {})) {
      Later(absl::Milliseconds(1), [this, key, task] {
        Input(key, worker::TaskFailed{task, absl::CancelledError("given up by request")});
      });
    }
  }
}

void SimWorker::BreakLink(absl::Duration longest_until_noticed) {
  if (link_ == nullptr) return;
  const auto longest = static_cast<int>(absl::ToInt64Milliseconds(longest_until_noticed));
  link_->Break(world_.Delay(1, longest), world_.Delay(1, longest));
}

void SimWorker::LinkClosed(SimLink& link, const absl::Status& status) {
  if (!up() || link_.get() != &link) return;
  link_->Abandon();
  link_.reset();
  Do(agent_->OnDisconnected(absl::UnavailableError(status.message()), world_.now()));
}

void SimWorker::Receive(SimLink& link, const v1::CoordinatorMessage& message) {
  if (up() && link_.get() == &link) Do(agent_->OnMessage(message, world_.now()));
}

// --- what is not so ---

void SimWorker::Lie() {
  if (!world_.faults()) return;
  Later(world_.Delay(500, 15'000), [this] { Lie(); });
  if (!world_.IsLiar(number_) || link_ == nullptr) return;
  world_.CountLie();
  v1::WorkerMessage message;
  if (world_.Below(4) == 0) {
    for (int i = 0; i < 3; ++i) {
      v1::HeldAttempt* held = message.mutable_heartbeat()->add_held_attempts();
      held->set_job_id(world_.AnyJob().value());
      // Nor here nor there of checks (attempt 0): one that a lie has mixed up is not asked anew.
      held->set_attempt(1 + world_.Below(3));
    }
  } else if (world_.Below(6) == 0) {
    v1::Contribution* contribution = message.mutable_contribution();
    contribution->set_job_id(world_.AnyJob().value());
    contribution->set_attempt(1 + world_.Below(3));
    contribution->set_rank(world_.Below(4));
    contribution->set_round(1 + world_.Below(20));
    contribution->mutable_file()->set_digest(world_.artifact().digest);
    contribution->mutable_file()->set_size_bytes(world_.artifact().size_bytes - world_.Below(2));
  } else {
    *message.mutable_attempt_event() = MakeLie();
  }
  link_->SendUp(std::move(message));
}

v1::AttemptEvent SimWorker::MakeLie() {
  v1::AttemptEvent event;
  const JobId job_id = world_.AnyJob();
  event.set_job_id(job_id.empty() ? "job-none" : job_id.value());
  event.set_attempt(world_.Below(20) == 0 ? -1 : 1 + world_.Below(4));
  event.set_sequence(world_.Below(9));
  v1::File file;
  file.set_path("adapter_model.safetensors");
  file.set_digest(world_.Below(2) == 0
                      ? world_.artifact().digest
                      : "sha256:0000000000000000000000000000000000000000000000000000000000000000");
  file.set_size_bytes(world_.artifact().size_bytes);
  switch (world_.Below(7)) {
    case 0:
      event.mutable_started()->set_first_step(world_.Below(50));
      break;
    case 1: {
      v1::Checkpoint* checkpoint = event.mutable_checkpointed()->mutable_checkpoint();
      checkpoint->set_step(world_.Below(60));
      checkpoint->set_attempt(world_.Below(4));
      *checkpoint->add_files() = file;
      break;
    }
    case 2:
      event.mutable_publishing()->set_last_step(world_.Below(60));
      break;
    case 3:
      *event.mutable_result()->add_files() = file;
      break;
    case 4:
      event.mutable_ended()->set_reason_code("STOPPED");
      event.mutable_ended()->set_retryable(true);
      break;
    case 5:
      event.mutable_preflight()->set_ok(world_.Below(2) == 0);
      event.mutable_preflight()->set_reason_code("LIE");
      event.mutable_preflight()->set_message("a lie");
      event.mutable_preflight()->set_retryable(true);
      break;
    default:
      event.mutable_listening()->set_address("10.9.9.9");
      event.mutable_listening()->set_port(1);
  }
  return event;
}

}  // namespace offshoot::sim
