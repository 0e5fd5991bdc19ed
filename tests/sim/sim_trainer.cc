// The worker's trainers: scripts that train, write checkpoints, fail, hang and die.
#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "tests/sim/sim_worker.h"

namespace offshoot::sim {
namespace {

constexpr int kStepsAtATime = 5;
constexpr int kStoppedCode = 3;
constexpr int kFailedCode = 4;
constexpr int kLongestGangWaits = 90;  // rounds that ranks wait for each other, on the average

int NumberOf(const JobId& job_id) {
  int number = 0;
  (void)absl::SimpleAtoi(job_id.value().substr(4, 6), &number);
  return number;
}

std::int64_t StepsOf(const JobId& job_id) { return 15 + 5 * (NumberOf(job_id) % 7); }

}  // namespace

// No two processes train on one device, whatever the coordinator believes.
void SimWorker::TakeDevices(const worker::AttemptKey& key) {
  for (const std::string& device : kept_[key].assignment.device_ids()) {
    const auto [it, is_free] = occupied_.try_emplace(device, key);
    if (!is_free && !(it->second == key)) {
      world_.audit().Fail(key.job_id,
                          absl::StrCat("is started on ", id_.value(), " ", device, " where ",
                                       worker::ToString(it->second), " still runs"));
    }
  }
}

void SimWorker::Launch(const worker::AttemptKey& key, bool verify) {
  Trainer& trainer = trainers_[key];
  const int life = ++trainer.life;
  trainer.alive = true;
  TakeDevices(key);
  Later(world_.Delay(50, 800), [this, key, life, verify] {
    if (trainers_[key].life != life || !trainers_[key].alive) return;
    Input(key, worker::Launched{});
    if (verify) {
      Later(world_.Delay(50, 800), [this, key, life] {
        if (trainers_[key].life == life) Exit(key, 0);
      });
      return;
    }
    const auto kept = kept_.find(key);
    if (kept == kept_.end()) return;
    const v1::Assignment& assignment = kept->second.assignment;
    if (assignment.kind() == v1::ASSIGNMENT_KIND_TRAIN && assignment.first_rank() == 0 &&
        assignment.world_size() > assignment.device_ids_size() &&
        !assignment.exchange_artifacts()) {
      Input(key, worker::Listening{{absl::StrCat("10.0.0.", number_ + 1), 5000}});
    }
    StepLater(key, life, world_.Delay(500, 3'000));
  });
}

void SimWorker::StepLater(const worker::AttemptKey& key, int life, absl::Duration delay) {
  Later(delay, [this, key, life] { Step(key, life); });
}

SimWorker::RankState SimWorker::StateOf(const worker::AttemptKey& key) const {
  const auto it = trainers_.find(key);
  if (it == trainers_.end() || it->second.life == 0) return RankState::kNone;
  if (it->second.finished) return RankState::kFinished;
  return it->second.alive ? RankState::kAlive : RankState::kDead;
}

bool SimWorker::GangIsReady(const worker::AttemptKey& key, bool* broken) const {
  *broken = false;
  const JobRecord* job = world_.FindJob(key.job_id);
  const auto number = static_cast<std::size_t>(key.attempt);
  if (job == nullptr || job->attempts.size() < number) return false;
  for (const GangMember& member : job->attempts[number - 1].members) {
    const SimWorker* other = world_.WorkerNamed(member.worker_id);
    if (!other->up()) {
      *broken = true;
      return false;
    }
    const RankState state = other->StateOf(key);
    if (state == RankState::kDead) *broken = true;
    if (state == RankState::kNone || state == RankState::kDead) return false;
  }
  return true;
}

void SimWorker::Step(const worker::AttemptKey& key, int life) {
  Trainer& trainer = trainers_[key];
  const auto kept = kept_.find(key);
  if (trainer.life != life || !trainer.alive || trainer.hung || kept == kept_.end()) return;
  const v1::Assignment& assignment = kept->second.assignment;
  const bool checks = assignment.kind() == v1::ASSIGNMENT_KIND_PREFLIGHT;
  if (world_.Chance(4)) {
    trainer.hung = true;  // until its worker has had enough
    return;
  }
  if (checks) {
    Check(key);
  } else if (assignment.world_size() == assignment.device_ids_size() ||
             !WaitForGang(key, trainer)) {
    Train(key, trainer);
  }
}

void SimWorker::Check(const worker::AttemptKey& key) {
  if (NumberOf(key.job_id) % 25 == 24) {
    Say(key, worker::TrainerFailed{"BAD_DATA", "line 7 is not JSON", 0});
    Exit(key, kFailedCode);
  } else {
    Say(key, worker::TrainerPreflight{"{}"});
    Exit(key, 0);
  }
}

// The ranks here contribute to the round under way; true, and on to the next, when all ranks have.
bool SimWorker::HasWholeRound(const worker::AttemptKey& key, Trainer& trainer) {
  const v1::Assignment& assignment = kept_[key].assignment;
  if (trainer.contributed < trainer.round) {
    trainer.contributed = trainer.round;
    const worker::TrainerContribution part{trainer.round, "/part"};
    for (int rank = 0; rank < assignment.device_ids_size(); ++rank) {
      Input(key, worker::TrainerSaid{rank, part});
    }
  }
  if (static_cast<int>(trainer.heard[trainer.round].size()) < assignment.world_size()) return false;
  ++trainer.round;
  return true;
}

bool SimWorker::LeaderHasFinished(const worker::AttemptKey& key) const {
  const JobRecord* job = world_.FindJob(key.job_id);
  const auto number = static_cast<std::size_t>(key.attempt);
  if (job == nullptr || job->attempts.size() < number) return false;
  const SimWorker* leader = world_.WorkerNamed(job->attempts[number - 1].leader().worker_id);
  return leader->StateOf(key) == RankState::kFinished;
}

// True: this rank does nothing more now.
bool SimWorker::WaitForGang(const worker::AttemptKey& key, Trainer& trainer) {
  bool broken = false;
  // Ranks that do not meet do not notice that another was lost.
  const bool exchanges = kept_[key].assignment.exchange_artifacts();
  const bool ready = exchanges ? HasWholeRound(key, trainer) : GangIsReady(key, &broken);
  if (broken || (!exchanges && !ready && world_.Below(kLongestGangWaits) == 0)) {
    Say(key, worker::TrainerFailed{"RANK_LOST", "another rank was lost", trainer.step});
    Exit(key, kFailedCode);
    return true;
  }
  SayWhatRanksDo(key, trainer.step, worker::TrainerActivity::Waiting::kForRanks);
  const bool leads = kept_[key].assignment.first_rank() == 0;
  const bool follows_to_the_end = exchanges && !leads && LeaderHasFinished(key);
  if (!ready && !trainer.stop_asked && !follows_to_the_end) {
    StepLater(key, trainer.life, absl::Seconds(1));
    return true;
  }
  if (leads) return false;
  if (LeaderHasFinished(key)) {
    trainer.finished = true;
    Exit(key, 0);
  } else if (trainer.stop_asked) {
    trainer.finished = true;
    Exit(key, kStoppedCode);
  } else {
    StepLater(key, trainer.life, absl::Seconds(1));
  }
  return true;
}

void SimWorker::Train(const worker::AttemptKey& key, Trainer& trainer) {
  const std::int64_t total = StepsOf(key.job_id);
  Kept& kept = kept_[key];
  if (trainer.step == 0) {
    const std::int64_t from =
        kept.assignment.has_resume_from() ? kept.assignment.resume_from().step() : 0;
    Say(key, worker::TrainerStarted{from + 1, total});
    trainer.step = std::max<std::int64_t>(1, from);
  }
  if (trainer.stop_asked) {
    WriteCheckpoint(key, trainer);
    Say(key, worker::TrainerStopped{kept.checkpoint->step, kept.checkpoint->path});
    trainer.finished = true;
    Exit(key, kStoppedCode);
    return;
  }
  trainer.step = std::min(trainer.step + kStepsAtATime, total);
  kept.last_step = trainer.step;
  if (NumberOf(key.job_id) % 10 == 3 && trainer.step >= total / 2) {
    Say(key, worker::TrainerFailed{"NAN_LOSS", "the loss is not a number", trainer.step});
    Exit(key, kFailedCode);
    return;
  }
  if (world_.Chance(10)) {
    Exit(key, 9, /*signalled=*/true);
    return;
  }
  if (trainer.step >= total) {
    worker::TrainerResult result;
    result.path = "/result";
    result.first_step = 1;
    result.last_step = total;
    Say(key, result);
    trainer.finished = true;
    Exit(key, 0);
    return;
  }
  SayWhatRanksDo(key, trainer.step, worker::TrainerActivity::Waiting::kForNothing);
  if (trainer.step % 10 < kStepsAtATime) WriteCheckpoint(key, trainer);
  StepLater(key, trainer.life, world_.Delay(2'000, 9'000));
}

void SimWorker::WriteCheckpoint(const worker::AttemptKey& key, Trainer& trainer) {
  Kept& kept = kept_[key];
  kept.checkpoint = worker::CheckpointOnDisk{trainer.step, absl::StrCat("/step-", trainer.step)};
  Say(key, worker::TrainerCheckpoint{trainer.step, kept.checkpoint->path});
}

void SimWorker::Exit(const worker::AttemptKey& key, int code, bool signalled) {
  Trainer& trainer = trainers_[key];
  if (!trainer.alive) return;
  trainer.alive = false;
  std::erase_if(occupied_, [&](const auto& entry) { return entry.second == key; });
  worker::TrainerEnded ended;
  ended.exit.ranks = {ExitStatus{signalled, code}};
  if (signalled || (code != 0 && code != kStoppedCode)) ended.exit.first_failed_rank = 0;
  ended.exit.terminated = signalled && code == 15;
  const auto kept = kept_.find(key);
  if (kept != kept_.end()) {
    ended.newest_checkpoint = kept->second.checkpoint;
    ended.exit.ranks.resize(
        static_cast<std::size_t>(std::max(1, kept->second.assignment.device_ids_size())),
        ended.exit.ranks.front());
  }
  Later(absl::Milliseconds(1), [this, key, ended] { Input(key, ended); });
}

bool SimWorker::ReachesArtifacts() const {
  return world_.coordinator_life() != 0 && !world_.IsPartitioned(number_);
}

void SimWorker::Exchange(const worker::AttemptKey& key, const worker::AttemptInput& done) {
  Later(world_.Delay(100, 2'000), [this, key, done] {
    if (!ReachesArtifacts()) {
      Exchange(key, done);
    } else if (world_.Chance(2)) {
      Input(key, worker::TaskFailed{worker::AttemptTask::kExchange,
                                    absl::ResourceExhaustedError("the disk is full")});
    } else {
      Input(key, done);
    }
  });
}

void SimWorker::Upload(const worker::AttemptKey& key, std::int64_t step, bool result) {
  const worker::AttemptTask task =
      result ? worker::AttemptTask::kUploadResult : worker::AttemptTask::kUploadCheckpoint;
  Later(world_.Delay(100, 2'000), [this, key, step, result, task] {
    if (!tasks_[key].contains(task)) return;
    if (!ReachesArtifacts()) {
      Upload(key, step, result);
      return;
    }
    tasks_[key].erase(task);
    if (!world_.controller()->IsCurrentAttempt(key.job_id,
                                               static_cast<std::int32_t>(key.attempt))) {
      Input(key, worker::TaskFailed{task, absl::AbortedError("fenced")});
      return;
    }
    v1::File file;
    file.set_path(result ? "adapter_model.safetensors" : absl::StrCat("manifest-", step));
    file.set_digest(world_.artifact().digest);
    file.set_size_bytes(world_.artifact().size_bytes);
    if (result) {
      Input(key, worker::ResultUploaded{{file}});
      return;
    }
    worker::CheckpointUploaded uploaded;
    uploaded.checkpoint.set_step(step);
    uploaded.checkpoint.set_attempt(static_cast<std::int32_t>(key.attempt));
    *uploaded.checkpoint.add_files() = file;
    Input(key, uploaded);
  });
}

}  // namespace offshoot::sim
