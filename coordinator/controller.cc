#include "coordinator/controller.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/planted_bugs.h"
#include "common/status_macros.h"
#include "coordinator/assignment.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxDoneEffects = 256;
constexpr std::size_t kMaxCollectedPerRound = 64;

std::int64_t MicrosecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() -
                                                               start)
      .count();
}

}  // namespace

Controller::Controller(ControllerOptions options, Store& store, const Clock& clock,
                       ArtifactDirectory& artifacts, AttemptOutputs& outputs, JobSignals& signals,
                       ResolveFunction resolve)
    : options_(std::move(options)),
      store_(store),
      clock_(clock),
      artifacts_(artifacts),
      outputs_(outputs),
      signals_(signals),
      resolve_(std::move(resolve)) {}

bool Controller::Post(std::function<void()> task) {
  absl::MutexLock lock(&queue_mutex_);
  if (queue_.size() >= options_.max_queue) return false;
  queue_.push_back(std::move(task));
  return true;
}

void Controller::PostAlways(std::function<void()> task) {
  absl::MutexLock lock(&queue_mutex_);
  queue_.push_back(std::move(task));
}

bool Controller::HasWork() const { return woken_ || !queue_.empty(); }

void Controller::Wake() {
  absl::MutexLock lock(&queue_mutex_);
  woken_ = true;
}

void Controller::WaitForWork() {
  const absl::Duration wait = NextDeadline() - clock_.Now();
  absl::MutexLock lock(&queue_mutex_);
  queue_mutex_.AwaitWithTimeout(absl::Condition(this, &Controller::HasWork), wait);
  woken_ = false;
}

absl::Time Controller::NextDeadline() const {
  if (!loaded_) return retry_load_;
  // A cycle that is put off is not looked for before its time.
  absl::Time deadline = std::min(next_expiry_, std::max(look_again_, schedule_not_before_));
  if (schedule_wanted_) deadline = std::min(deadline, schedule_not_before_);
  if (!collectable_.empty()) deadline = std::min(deadline, collectable_.front().second);
  return deadline;
}

void Controller::Reset() {
  for (auto& count : counters_.live_jobs) count = 0;
  jobs_.clear();
  unchecked_.clear();
  cluster_ = ClusterSnapshot();
  waiting_index_.clear();
  running_index_.clear();
  team_use_.clear();
  leases_.clear();
  workers_.clear();
  preflights_.clear();
  gang_ends_.clear();
  failed_checks_.clear();
  write_ = StoreWrite();
  changed_jobs_.clear();
  new_jobs_.clear();
  new_requests_.clear();
  done_effects_.clear();
  effects_.clear();
  next_expiry_ = absl::InfiniteFuture();
  loaded_ = false;
}

absl::Status Controller::Load() {
  Reset();
  now_ = clock_.Now();
  ASSIGN_OR_RETURN(LoadedState state, store_.Load());
  version_ = state.version;
  last_effect_id_ = std::max(last_effect_id_, state.last_effect_id);
  for (WorkerRecord& record : state.workers) {
    const WorkerId worker_id = record.worker_id;
    UpdateOffer(workers_[worker_id] = WorkerState{std::move(record), 0, now_, 0});
  }
  for (TeamUseRecord& use : state.team_use) {
    const std::string team = use.team;
    team_use_[team].record = std::move(use);
  }
  RecoverUse(state.jobs);
  {
    absl::MutexLock lock(&view_mutex_);
    output_owners_.clear();
    past_owners_.clear();
  }
  for (JobRecord& job : state.jobs) {
    const JobId job_id = job.id();
    JobRecord& kept = jobs_[job_id] = std::move(job);
    counters_.live_jobs[static_cast<std::size_t>(kept.state) - 1] += 1;
    UpdateIndexes(kept);
    RecoverGangEnd(kept);
  }
  workers_changed_ = true;
  effects_ = std::move(state.effects);
  loaded_ = true;
  schedule_wanted_ = true;
  ExecuteEffects();
  return absl::OkStatus();
}

bool Controller::RunOnce() {
  now_ = clock_.Now();
  if (!loaded_) {
    if (now_ < retry_load_) return false;
    if (absl::Status status = Load(); !status.ok()) {
      spdlog::error("the store cannot be read, trying again: {}", status.ToString());
      retry_load_ = now_ + absl::Seconds(1);
      return false;
    }
  }
  std::vector<std::function<void()>> batch;
  bool more = false;
  {
    absl::MutexLock lock(&queue_mutex_);
    const std::size_t count = std::min(queue_.size(), options_.max_batch);
    batch.assign(std::make_move_iterator(queue_.begin()),
                 std::make_move_iterator(queue_.begin() + static_cast<std::ptrdiff_t>(count)));
    queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(count));
    more = !queue_.empty();
  }
  for (const std::function<void()>& task : batch) task();
  HandleTimers();
  if (look_again_ <= now_) schedule_wanted_ = true;
  if (schedule_wanted_ && schedule_not_before_ <= now_) ScheduleNow();
  Commit();
  CollectCheckpointFiles();
  UpdateCounters();
  absl::MutexLock lock(&queue_mutex_);
  return more || !queue_.empty();
}

void Controller::AfterCommit(std::function<void(const absl::Status&)> action) {
  after_commit_.push_back(std::move(action));
}

void Controller::Commit() {
  for (const JobId& job_id : changed_jobs_) {
    const auto it = jobs_.find(job_id);
    if (it == jobs_.end()) continue;
    (new_jobs_.contains(job_id) ? write_.new_jobs : write_.jobs).push_back(it->second);
  }
  if (write_.empty() && done_effects_.size() < kMaxDoneEffects) {
    // Effects that are done wait for the next transaction: repeating them would do no harm.
    for (auto& action : std::exchange(after_commit_, {})) action(absl::OkStatus());
    return;
  }
  write_.if_version = version_;
  write_.done_effects = std::exchange(done_effects_, {});
  std::vector<StoredEffect> unstored;
  if (Planted(PlantedBug::kEffectLost)) unstored.swap(write_.new_effects);
  const auto start = std::chrono::steady_clock::now();
  const absl::StatusOr<std::int64_t> version = store_.Commit(write_);
  counters_.commits += 1;
  counters_.commit_microseconds += MicrosecondsSince(start);
  if (!version.ok()) {
    Recover(version.status());
    return;
  }
  version_ = *version;
  effects_.insert(effects_.end(), write_.new_effects.begin(), write_.new_effects.end());
  effects_.insert(effects_.end(), unstored.begin(), unstored.end());
  write_ = StoreWrite();
  new_jobs_.clear();
  new_requests_.clear();
  const std::set<JobId> changed = std::exchange(changed_jobs_, {});
  for (auto& action : std::exchange(after_commit_, {})) action(absl::OkStatus());
  for (const JobId& job_id : changed) {
    signals_.Signal(job_id);
    const auto it = jobs_.find(job_id);
    if (it != jobs_.end() && IsTerminal(it->second.state) && !it->second.has_open_attempt()) {
      counters_.live_jobs[static_cast<std::size_t>(it->second.state) - 1] -= 1;
      jobs_.erase(it);
    }
  }
  ExecuteEffects();
}

void Controller::Recover(const absl::Status& status) {
  counters_.commit_failures += 1;
  spdlog::error("a transaction failed and is undone: {}", status.ToString());
  const absl::Status answer(
      absl::IsResourceExhausted(status) ? status.code() : absl::StatusCode::kUnavailable,
      absl::StrCat("the coordinator could not store this: ", status.message()));
  for (auto& action : std::exchange(after_commit_, {})) action(answer);
  for (auto& [session, state] : std::exchange(sessions_, {})) {
    state.peer->Close(absl::UnavailableError("the coordinator's store failed; connect again"));
  }
  Reset();
  retry_load_ = now_;
}

void Controller::ExecuteEffects() {
  for (const StoredEffect& effect : std::exchange(effects_, {})) Execute(effect);
}

void Controller::Execute(const StoredEffect& effect) {
  switch (effect.effect.kind) {
    case EffectKind::kResolveInputs:
      ResolveInputs(effect);
      return;
    case EffectKind::kSendAssignment:
      SendAssignment(effect.effect.job_id, effect.effect.attempt);
      break;
    case EffectKind::kStopAttempt: {
      // A worker that is away now is told when it comes back (Reconcile).
      const auto lease = leases_.find(effect.effect.job_id);
      if (lease != leases_.end() && lease->second.attempt == effect.effect.attempt) {
        for (const auto& [worker_id, expires] : lease->second.expires) {
          Send(workers_[worker_id].session,
               StopMessage{effect.effect.job_id, effect.effect.attempt, effect.effect.checkpoint,
                           effect.effect.reason_code});
        }
      }
      break;
    }
    case EffectKind::kPublish:
      Publish(effect);
      return;
    case EffectKind::kCollectFiles:
      break;  // NoteReferences has listed what may go
  }
  done_effects_.push_back(effect.effect_id);
}

void Controller::ResolveInputs(const StoredEffect& effect) {
  const JobId job_id = effect.effect.job_id;
  const JobRecord* job = FindJob(job_id);
  if (job == nullptr || IsTerminal(job->state) || job->inputs != nullptr) {
    done_effects_.push_back(effect.effect_id);
    return;
  }
  absl::StatusOr<std::shared_ptr<const JobSpec>> spec = SpecOf(*job->definition);
  auto finish = [this, job_id, id = effect.effect_id](absl::StatusOr<ResolvedInputs> inputs) {
    PostAlways([this, job_id, id, inputs = std::move(inputs)]() mutable {
      ApplyInputs(job_id, std::move(inputs));
      done_effects_.push_back(id);
    });
  };
  if (!spec.ok()) {
    finish(spec.status());
    return;
  }
  resolve_(*std::move(spec), std::move(finish));
}

// The derivative and the job's end are one transaction, in the next round.
void Controller::Publish(const StoredEffect& effect) {
  PostAlways([this, effect] {
    done_effects_.push_back(effect.effect_id);
    JobRecord* job = FindJob(effect.effect.job_id);
    if (job == nullptr || job->state != JobState::kPublishing || !job->result) return;
    std::string missing;
    if (!artifacts_.HasAll(job->result->files, &missing)) {
      (void)Apply(job->id(),
                  PublishFailed{"RESULT_MISSING", absl::StrCat("the result's file ", missing,
                                                               " is not in the artifact store")});
      return;
    }
    DerivativeRecord derivative;
    derivative.digest = DigestOfFiles(job->result->files);
    // Made from job and bytes, so that publishing twice makes one derivative.
    derivative.derivative_id = DerivativeId(
        "drv-" + DigestOf(absl::StrCat(job->id().value(), " ", derivative.digest)).substr(7, 16));
    derivative.job_id = job->id();
    derivative.name = job->definition->name;
    derivative.team = job->definition->team;
    if (const auto spec = SpecOf(*job->definition); spec.ok()) {
      derivative.base_model_id = (*spec)->base_model_id;
      if (!(*spec)->publish.name.empty()) derivative.name = (*spec)->publish.name;
    }
    if (derivative.base_model_id.empty()) {
      derivative.base_model_id = job->inputs->inputs.front().hub_repository;
    }
    derivative.base_model_digest = job->inputs->inputs.front().digest;
    derivative.files = job->result->files;
    derivative.base_eval_loss = job->result->base_eval_loss;
    derivative.eval_loss = job->result->eval_loss;
    derivative.created = now_;
    References references{absl::StrCat("derivative:", derivative.derivative_id.value()), {}};
    for (const FileEntry& file : derivative.files) references.digests.push_back(file.digest);
    const absl::Status status = Apply(job->id(), Published{derivative.derivative_id.value()});
    if (!status.ok()) return;
    write_.references.push_back(std::move(references));
    write_.derivatives.push_back(std::move(derivative));
  });
}

void Controller::CollectCheckpointFiles() {
  for (std::size_t i = 0; i < kMaxCollectedPerRound && !collectable_.empty(); ++i) {
    const auto [digest, due] = collectable_.front();
    if (due > now_) return;
    collectable_.pop_front();
    const absl::StatusOr<bool> referenced = store_.IsReferenced(digest);
    if (referenced.ok() && !*referenced) {
      artifacts_.RemoveIfOlder(digest, absl::Now() - kCollectDelay);
    }
  }
}

void Controller::NoteReferences(const JobRecord& before, const JobRecord& after) {
  const bool was_terminal = IsTerminal(before.state);
  const bool same = before.checkpoint == after.checkpoint && before.result == after.result &&
                    before.inputs == after.inputs && was_terminal == IsTerminal(after.state);
  if (same) return;
  std::set<std::string> needed;
  if (!IsTerminal(after.state)) {
    if (after.inputs != nullptr) {
      for (const InputRecord& input : after.inputs->inputs) {
        if (!input.shared_path.empty()) continue;
        for (const FileEntry& file : input.files) needed.insert(file.digest);
      }
    }
    if (after.checkpoint) {
      for (const FileEntry& file : after.checkpoint->files) needed.insert(file.digest);
    }
    if (after.result) {
      for (const FileEntry& file : after.result->files) needed.insert(file.digest);
    }
  }
  write_.references.push_back(
      References{absl::StrCat("job:", after.id().value()), {needed.begin(), needed.end()}});
  if (before.checkpoint) {
    for (const FileEntry& file : before.checkpoint->files) {
      if (!needed.contains(file.digest)) {
        collectable_.emplace_back(file.digest, now_ + kCollectDelay);
      }
    }
  }
}

void Controller::UpdateCounters() {
  if (!std::exchange(workers_changed_, false)) return;
  std::int64_t connected = 0;
  std::int64_t draining = 0;
  for (const auto& [worker_id, worker] : workers_) {
    connected += worker.session != 0 ? 1 : 0;
    draining += worker.record.draining ? 1 : 0;
  }
  counters_.workers_connected = connected;
  counters_.workers_draining = draining;
  counters_.workers_lost = static_cast<std::int64_t>(workers_.size()) - connected;
}

}  // namespace offshoot
