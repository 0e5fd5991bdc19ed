#include "worker/attempt_machine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"

namespace offshoot::worker {
namespace {

constexpr char kFenced[] = "FENCED";
constexpr char kStopLine[] = R"({"command": "stop", "checkpoint": true})";
constexpr char kCheckpointLine[] = R"({"command": "checkpoint"})";
constexpr std::size_t kMaxPendingCheckpoints = 16;

bool IsTerminal(const v1::AttemptEvent& event) {
  return event.has_ended() || event.has_result() || event.has_preflight();
}

bool EveryRankEndedWith(const TrainerExit& exit, int code) {
  return !exit.ranks.empty() &&
         std::all_of(exit.ranks.begin(), exit.ranks.end(), [code](const ExitStatus& status) {
           return !status.signalled && status.code == code;
         });
}

}  // namespace

std::string ToString(const AttemptKey& key) {
  return absl::StrCat(key.job_id.value(), ".", static_cast<std::int32_t>(key.attempt));
}

AttemptMachine::AttemptMachine(v1::Assignment assignment, AttemptLimits limits)
    : assignment_(std::move(assignment)),
      key_{JobId(assignment_.job_id()), AttemptNumber{assignment_.attempt()}},
      limits_(limits) {}

AttemptActions AttemptMachine::Take() { return std::exchange(actions_, {}); }

AttemptActions AttemptMachine::Start() {
  actions_.push_back(PrepareInputs{});
  return Take();
}

AttemptActions AttemptMachine::Recover(const RecoveredAttempt& recovered, absl::Time now) {
  bool terminal = false;
  for (const v1::AttemptEvent& event : recovered.events) {
    next_sequence_ = event.sequence() + 1;
    if (event.sequence() > recovered.acknowledged_sequence) unacknowledged_.push_back(event);
    if (event.has_started()) {
      first_step_ = event.started().first_step();
      last_step_ = first_step_ - 1;
    }
    if (event.has_checkpointed()) {
      newest_checkpoint_step_ = event.checkpointed().checkpoint().step();
    }
    terminal = terminal || IsTerminal(event);
  }
  last_step_ = std::max({last_step_, newest_checkpoint_step_, recovered.last_step});
  if (terminal) {
    phase_ = Phase::kOver;
    if (unacknowledged_.empty()) actions_.push_back(Forget{});
    return Take();
  }
  if (recovered.newest_checkpoint.has_value()) QueueCheckpoint(*recovered.newest_checkpoint);
  Finish({"WORKER_RESTARTED", "the worker was restarted while the attempt ran", true}, now);
  return Take();
}

AttemptActions AttemptMachine::OnInput(const AttemptInput& input, absl::Time now) {
  std::visit([&](const auto& value) { Handle(value, now); }, input);
  return Take();
}

void AttemptMachine::Handle(const Preparing& preparing, absl::Time now) {
  if (phase_ == Phase::kPreparing && !fenced_) HandleEvent(TrainerStage{preparing.stage}, now);
}

void AttemptMachine::Handle(const InputsReady&, absl::Time) {
  inputs_ready_ = true;
  LaunchWhenReady();
}

AttemptActions AttemptMachine::OnMeetAt(const MeetingPlace& place) {
  if (!meet_at_.has_value()) meet_at_ = place;
  LaunchWhenReady();
  return Take();
}

void AttemptMachine::LaunchWhenReady() {
  if (phase_ != Phase::kPreparing || !inputs_ready_) return;
  if (!leads() && !meet_at_.has_value() && !exchanges()) return;
  phase_ = Phase::kRunning;
  process_wanted_ = true;
  actions_.push_back(LaunchTrainer{leads() ? std::nullopt : meet_at_});
}

void AttemptMachine::Handle(const Listening& listening, absl::Time now) {
  if (fenced_ || phase_ != Phase::kRunning) return;
  v1::AttemptEvent event = NewEvent(now);
  event.mutable_listening()->set_address(listening.at.address);
  event.mutable_listening()->set_port(listening.at.port);
  Emit(std::move(event));
}

void AttemptMachine::Handle(const Launched&, absl::Time now) {
  launched_ = true;
  if (preflight()) {
    deadline_ = now + limits_.preflight_timeout;
  } else if (phase_ == Phase::kRunning) {
    start_deadline_ = now + limits_.start_timeout;
  }
  // What came while it was being started: other ranks' contributions, a stop.
  for (const auto& [rank, rounds] : for_the_ranks_) {
    for (const auto& [round, path] : rounds) HandOver(rank, round, path);
  }
  if (terminating_) actions_.push_back(TerminateTrainer{});
}

void AttemptMachine::Handle(const TaskFailed& failed, absl::Time now) {
  if (absl::IsAborted(failed.status)) {
    if (failed.task == AttemptTask::kLaunch) process_wanted_ = false;
    DropEverything();
    return;
  }
  switch (failed.task) {
    case AttemptTask::kPrepareInputs:
      if (phase_ == Phase::kPreparing) Finish(ExplainTaskFailure(failed.status), now);
      return;
    case AttemptTask::kLaunch:
      process_wanted_ = false;
      if (fenced_) {
        DropEverything();
      } else if (stop_.has_value()) {
        FinishStopped(now);
      } else {
        Finish(ExplainTaskFailure(failed.status), now);
      }
      return;
    case AttemptTask::kUploadCheckpoint:
      if (!uploading_) return;
      uploading_ = false;
      checkpoints_.clear();
      if (!end_.has_value()) end_ = ExplainTaskFailure(failed.status);
      if (process_wanted_ && !terminating_) {
        terminating_ = true;
        if (launched_) actions_.push_back(TerminateTrainer{});
      }
      phase_ = Phase::kDelivering;
      DeliverWhenReady(now);
      return;
    case AttemptTask::kExchange:
      if (phase_ == Phase::kRunning && !terminating_ && !end_.has_value()) {
        GiveUp(ExplainTaskFailure(failed.status));
      }
      return;
    case AttemptTask::kUploadResult:
      if (phase_ == Phase::kUploading) Finish(ExplainTaskFailure(failed.status), now);
      return;
  }
}

void AttemptMachine::QueueCheckpoint(const CheckpointOnDisk& checkpoint) {
  if (checkpoint.step <= newest_checkpoint_step_) return;
  newest_checkpoint_step_ = checkpoint.step;
  last_step_ = std::max(last_step_, checkpoint.step);
  // Only a trainer that does not wait for checkpoint_stored gets this far ahead of the network:
  // the oldest that is not under way is of no use any more.
  if (checkpoints_.size() >= kMaxPendingCheckpoints) {
    checkpoints_.erase(checkpoints_.begin() + (uploading_ ? 1 : 0));
  }
  checkpoints_.push_back(checkpoint);
  StartNextUpload();
}

void AttemptMachine::StartNextUpload() {
  if (uploading_ || checkpoints_.empty()) return;
  uploading_ = true;
  actions_.push_back(UploadCheckpoint{checkpoints_.front().step, checkpoints_.front().path});
}

void AttemptMachine::Handle(const CheckpointUploaded& uploaded, absl::Time now) {
  if (!uploading_ || checkpoints_.front().step != uploaded.checkpoint.step()) return;
  uploading_ = false;
  checkpoints_.pop_front();
  v1::AttemptEvent event = NewEvent(now);
  *event.mutable_checkpointed()->mutable_checkpoint() = uploaded.checkpoint;
  Emit(std::move(event));
  StartNextUpload();
  if (phase_ == Phase::kDelivering) DeliverWhenReady(now);
}

void AttemptMachine::Handle(const ResultUploaded& uploaded, absl::Time now) {
  if (phase_ != Phase::kUploading) return;
  v1::AttemptEvent event = NewEvent(now);
  v1::AttemptResult* result = event.mutable_result();
  for (const v1::File& file : uploaded.files) *result->add_files() = file;
  if (result_->base_eval_loss.has_value()) result->set_base_eval_loss(*result_->base_eval_loss);
  if (result_->eval_loss.has_value()) result->set_eval_loss(*result_->eval_loss);
  result->set_first_step(result_->first_step);
  result->set_last_step(result_->last_step);
  Emit(std::move(event));
  phase_ = Phase::kOver;
}

void AttemptMachine::Handle(const TrainerEnded& ended, absl::Time now) {
  process_wanted_ = false;
  launched_ = false;
  deadline_ = absl::InfiniteFuture();
  start_deadline_ = absl::InfiniteFuture();
  progress_deadline_ = absl::InfiniteFuture();
  activities_.clear();
  log_tail_ = ended.exit.log_tail;
  if (fenced_) {
    DropEverything();
    return;
  }
  if (phase_ == Phase::kVerifying) {
    OnVerifyEnded(ended.exit, now);
    return;
  }
  const bool cancelled = stop_.has_value() && !stop_->checkpoint;
  if (ended.newest_checkpoint.has_value() && !cancelled && !preflight() && !end_.has_value()) {
    QueueCheckpoint(*ended.newest_checkpoint);
  }
  OnTrainEnded(ended.exit, now);
}

void AttemptMachine::OnTrainEnded(const TrainerExit& exit, absl::Time now) {
  constexpr int kStoppedCode = 3;
  const bool cancelled = stop_.has_value() && !stop_->checkpoint;
  if (end_.has_value()) {
    DeliverWhenReady(now);
  } else if (cancelled) {
    FinishStopped(now);
  } else if (EveryRankEndedWith(exit, 0) && preflight() && preflight_.has_value()) {
    v1::AttemptEvent event = NewEvent(now);
    event.mutable_preflight()->set_ok(true);
    event.mutable_preflight()->set_result_json(preflight_->json);
    Emit(std::move(event));
    phase_ = Phase::kOver;
  } else if (EveryRankEndedWith(exit, 0) && !leads()) {
    // The result is rank 0's.
    Finish({"FINISHED", "", false}, now);
  } else if (EveryRankEndedWith(exit, 0) && !preflight() && result_.has_value()) {
    v1::AttemptEvent event = NewEvent(now);
    event.mutable_publishing()->set_last_step(result_->last_step);
    Emit(std::move(event));
    phase_ = Phase::kVerifying;
    process_wanted_ = true;
    HandleEvent(TrainerStage{"verifying"}, now);
    actions_.push_back(LaunchVerify{});
  } else if (stop_.has_value() &&
             (stopped_ || exit.terminated || EveryRankEndedWith(exit, kStoppedCode))) {
    FinishStopped(now);
  } else if (EveryRankEndedWith(exit, kStoppedCode) && spans_workers()) {
    Finish({kRankLost, "the gang stopped because ranks on another worker were told to", true}, now);
  } else if (EveryRankEndedWith(exit, kStoppedCode)) {
    Finish({"TRAINER_KILLED",
            "the trainer was told to stop by something other than its worker (a SIGTERM)", true},
           now);
  } else {
    Finish(ExplainExit(exit, failed_, failed_rank_, assignment_.first_rank()), now);
  }
}

void AttemptMachine::OnVerifyEnded(const TrainerExit& exit, absl::Time now) {
  if (stop_.has_value() && !stop_->checkpoint) {
    FinishStopped(now);
  } else if (EveryRankEndedWith(exit, 0)) {
    phase_ = Phase::kUploading;
    actions_.push_back(UploadResult{result_->path});
  } else {
    Finish(ExplainVerifyExit(exit), now);
  }
}

void AttemptMachine::Finish(AttemptEnd end, absl::Time now) {
  if (!end_.has_value()) end_ = std::move(end);
  phase_ = Phase::kDelivering;
  DeliverWhenReady(now);
}

void AttemptMachine::FinishStopped(absl::Time now) {
  const std::string& why = stop_->reason_code;
  // What the worker decided by itself is told by its own code.
  const bool own_decision = why == kWorkerLeaving || why == kCoordinatorUnreachable;
  const std::string state =
      newest_checkpoint_step_ > 0
          ? absl::StrCat("; the newest checkpoint is of step ", newest_checkpoint_step_)
          : " before the first checkpoint";
  Finish({own_decision ? why : "STOPPED", absl::StrCat("stopped (", why, ")", state), true}, now);
}

void AttemptMachine::DeliverWhenReady(absl::Time now) {
  if (process_wanted_ || phase_ != Phase::kDelivering) return;
  if (!checkpoints_.empty()) {
    StartNextUpload();
    return;
  }
  EmitTerminal(now);
}

void AttemptMachine::EmitTerminal(absl::Time now) {
  v1::AttemptEvent event = NewEvent(now);
  if (preflight()) {
    v1::PreflightResult* result = event.mutable_preflight();
    result->set_ok(false);
    result->set_reason_code(end_->reason_code);
    result->set_message(end_->message);
    result->set_retryable(end_->retryable || stop_.has_value());
  } else {
    v1::AttemptEnded* ended = event.mutable_ended();
    ended->set_reason_code(end_->reason_code);
    ended->set_message(end_->message);
    ended->set_retryable(end_->retryable);
    ended->set_first_step(first_step_);
    ended->set_last_step(first_step_ == 0 ? 0 : last_step_);
    ended->set_log_tail(log_tail_);
  }
  Emit(std::move(event));
  phase_ = Phase::kOver;
}

AttemptActions AttemptMachine::OnEventAck(std::int64_t sequence, bool fenced, absl::Time) {
  if (fenced) {
    DropEverything();
    return Take();
  }
  while (!unacknowledged_.empty() && unacknowledged_.front().sequence() <= sequence) {
    const v1::AttemptEvent event = std::move(unacknowledged_.front());
    unacknowledged_.pop_front();
    if (!event.has_checkpointed()) continue;
    const std::int64_t step = event.checkpointed().checkpoint().step();
    progress_.set_checkpoint_step(step);
    if (launched_ && phase_ == Phase::kRunning) {
      actions_.push_back(
          SendControl{absl::StrCat(R"({"command": "checkpoint_stored", "step": )", step, "}")});
    }
  }
  if (phase_ == Phase::kOver && unacknowledged_.empty() && !process_wanted_) {
    actions_.push_back(Forget{});
  }
  return Take();
}

AttemptActions AttemptMachine::OnStop(bool checkpoint, const std::string& reason_code,
                                      absl::Time now) {
  if (reason_code == kFenced) {
    DropEverything();
    return Take();
  }
  if (phase_ == Phase::kOver || fenced_) return Take();
  if (stop_.has_value() && (checkpoint || !stop_->checkpoint)) return Take();  // not more urgent
  // A preflight has nothing to save, nor has a trainer that is only being started. One that has
  // finished training is let finish.
  const bool gentle = checkpoint && !preflight() && phase_ == Phase::kRunning && launched_;
  if (checkpoint && (phase_ == Phase::kVerifying || phase_ == Phase::kUploading ||
                     phase_ == Phase::kDelivering)) {
    return Take();
  }
  stop_ = Stop{gentle, reason_code};
  if (gentle) {
    deadline_ = now + limits_.stop_timeout;
    actions_.push_back(SendControl{kStopLine});
    return Take();
  }
  checkpoints_.clear();
  uploading_ = false;
  actions_.push_back(CancelTasks{});
  if (process_wanted_) {
    terminating_ = true;
    if (launched_) actions_.push_back(TerminateTrainer{});
  } else {
    FinishStopped(now);
  }
  return Take();
}

AttemptActions AttemptMachine::OnCheckpointNow() {
  if (launched_ && phase_ == Phase::kRunning && !preflight()) {
    actions_.push_back(SendControl{kCheckpointLine});
  }
  return Take();
}

AttemptActions AttemptMachine::OnTick(absl::Time now) {
  if (now >= deadline_) {
    deadline_ = absl::InfiniteFuture();
    if (preflight() && !end_.has_value() && !terminating_) {
      GiveUp({"PREFLIGHT_HUNG",
              absl::StrCat("the check of base model and data was not done after ",
                           absl::FormatDuration(limits_.preflight_timeout)),
              true});
    } else {
      terminating_ = true;
      if (launched_) actions_.push_back(TerminateTrainer{});
    }
  }
  if (now >= start_deadline_) EndUnlessBegun();
  if (now >= progress_deadline_) LookForHungRanks(now);
  return Take();
}

// The coordinator counts on another attempt: nothing of this one may reach it any more.
void AttemptMachine::DropEverything() {
  fenced_ = true;
  unacknowledged_.clear();
  checkpoints_.clear();
  uploading_ = false;
  actions_.push_back(CancelTasks{});
  if (process_wanted_) {
    phase_ = Phase::kDelivering;
    terminating_ = true;
    if (launched_) actions_.push_back(TerminateTrainer{});
    return;
  }
  phase_ = Phase::kOver;
  actions_.push_back(Forget{});
}

v1::HeldAttempt AttemptMachine::Held() const {
  v1::HeldAttempt held;
  held.set_job_id(assignment_.job_id());
  held.set_attempt(assignment_.attempt());
  held.set_next_event_sequence(unacknowledged_.empty() ? next_sequence_
                                                       : unacknowledged_.front().sequence());
  return held;
}

v1::AttemptEvent AttemptMachine::NewEvent(absl::Time now) {
  v1::AttemptEvent event;
  event.set_job_id(assignment_.job_id());
  event.set_attempt(assignment_.attempt());
  event.set_sequence(next_sequence_++);
  *event.mutable_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(now));
  return event;
}

void AttemptMachine::Emit(v1::AttemptEvent event) {
  unacknowledged_.push_back(event);
  actions_.push_back(EmitEvent{std::move(event)});
}

v1::AttemptOutput AttemptMachine::NewOutput() const {
  v1::AttemptOutput output;
  output.set_job_id(assignment_.job_id());
  output.set_attempt(assignment_.attempt());
  return output;
}

}  // namespace offshoot::worker
