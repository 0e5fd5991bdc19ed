// What the trainer's events do to an attempt: metrics, checkpoints, activity, results.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/util/time_util.h"
#include "worker/attempt_machine.h"

namespace offshoot::worker {

void AttemptMachine::Handle(const TrainerSaid& said, absl::Time now) {
  if (fenced_ || (phase_ != Phase::kRunning && phase_ != Phase::kDelivering)) return;
  if (const auto* activity = std::get_if<TrainerActivity>(&said.event)) {
    NoteBegun(said.rank);
    NoteActivity(said.rank, *activity, now);
    return;
  }
  if (const auto* failed = std::get_if<TrainerFailed>(&said.event)) {
    // That others were lost is never the cause, where one is known.
    if (!failed_.has_value() ||
        (failed_->reason_code == kRankLost && failed->reason_code != kRankLost)) {
      failed_ = *failed;
      failed_rank_ = said.rank;
      if (failed->step > 0) last_step_ = std::max(last_step_, failed->step - 1);
    }
    return;
  }
  if (const auto* contribution = std::get_if<TrainerContribution>(&said.event)) {
    if (exchanges()) {
      actions_.push_back(StoreContribution{assignment_.first_rank() + said.rank,
                                           contribution->round, contribution->path});
    }
    return;
  }
  if (std::holds_alternative<TrainerStarted>(said.event)) NoteBegun(said.rank);
  // Of anything else rank 0 speaks for the gang.
  if (said.rank != 0 || !leads()) return;
  std::visit([&](const auto& event) { HandleEvent(event, now); }, said.event);
}

void AttemptMachine::HandleEvent(const TrainerStage& stage, absl::Time) {
  progress_.set_stage(stage.stage);
  v1::AttemptOutput output = NewOutput();
  *output.mutable_progress() = progress_;
  actions_.push_back(SendOutput{std::move(output)});
}

void AttemptMachine::HandleEvent(const TrainerPreflight& preflight, absl::Time) {
  preflight_ = preflight;
}

void AttemptMachine::HandleEvent(const TrainerStarted& started, absl::Time now) {
  if (preflight() || first_step_ != 0) return;
  first_step_ = started.first_step;
  last_step_ = started.first_step - 1;
  progress_.set_total_steps(started.total_steps);
  v1::AttemptEvent event = NewEvent(now);
  event.mutable_started()->set_first_step(started.first_step);
  event.mutable_started()->set_total_steps(started.total_steps);
  Emit(std::move(event));
}

void AttemptMachine::HandleEvent(const TrainerMetrics& metrics, absl::Time) {
  last_step_ = std::max(last_step_, metrics.step);
  progress_.set_step(metrics.step);
  progress_.set_train_loss(metrics.train_loss);
  progress_.set_tokens(metrics.tokens);
  progress_.set_tokens_per_second(metrics.tokens_per_second);
  const std::int64_t steps_left = std::max<std::int64_t>(0, progress_.total_steps() - metrics.step);
  constexpr double kMaxSeconds = 1e9;
  const double seconds_left = static_cast<double>(steps_left) * metrics.step_seconds;
  progress_.set_estimated_seconds_left(
      seconds_left >= 0 && seconds_left < kMaxSeconds ? static_cast<int>(seconds_left) : 0);
  v1::AttemptOutput output = NewOutput();
  v1::StepMetrics* step = output.add_metrics();
  for (const TrainerRankMetrics& rank : metrics.ranks) {
    v1::RankMetrics* of_rank = step->add_ranks();
    of_rank->set_share(rank.share);
    of_rank->set_tokens_per_second(rank.tokens_per_second);
    of_rank->set_wait_seconds(rank.wait_seconds);
  }
  step->set_attempt(assignment_.attempt());
  step->set_step(metrics.step);
  step->set_epoch(metrics.epoch);
  step->set_train_loss(metrics.train_loss);
  step->set_grad_norm(metrics.grad_norm);
  step->set_learning_rate(metrics.learning_rate);
  step->set_tokens(metrics.tokens);
  step->set_step_seconds(metrics.step_seconds);
  step->set_tokens_per_second(metrics.tokens_per_second);
  *progress_.mutable_ranks() = step->ranks();
  *output.mutable_progress() = progress_;
  actions_.push_back(SendOutput{std::move(output)});
}

void AttemptMachine::HandleEvent(const TrainerEval& eval, absl::Time) {
  progress_.set_eval_loss(eval.eval_loss);
  if (eval.base_eval_loss.has_value()) progress_.set_base_eval_loss(*eval.base_eval_loss);
  v1::AttemptOutput output = NewOutput();
  v1::StepMetrics* step = output.add_metrics();
  step->set_attempt(assignment_.attempt());
  step->set_step(eval.step);
  step->set_eval_loss(eval.eval_loss);
  *output.mutable_progress() = progress_;
  actions_.push_back(SendOutput{std::move(output)});
}

void AttemptMachine::HandleEvent(const TrainerCheckpoint& checkpoint, absl::Time) {
  if (stop_.has_value() && !stop_->checkpoint) return;
  QueueCheckpoint({checkpoint.step, checkpoint.path});
}

void AttemptMachine::HandleEvent(const TrainerSample&, absl::Time) {}  // it is in the result's card
void AttemptMachine::HandleEvent(const TrainerActivity&, absl::Time) {}  // NoteActivity

void AttemptMachine::NoteActivity(int rank, const TrainerActivity& activity, absl::Time now) {
  if (activity.waiting == TrainerActivity::Waiting::kOver) {
    activities_.erase(rank);
  } else {
    activities_[rank] = {activity, now};
  }
  progress_deadline_ = absl::InfiniteFuture();
  for (const auto& [number, known] : activities_) {
    // Silence is a sign, too.
    absl::Time due = known.heard + limits_.progress_timeout;
    const absl::Time began = known.heard - absl::Seconds(known.activity.seconds);
    if (known.activity.waiting == TrainerActivity::Waiting::kForNothing) {
      due = std::min(due, began + limits_.progress_timeout);
    } else if (known.activity.waiting == TrainerActivity::Waiting::kForRanks) {
      due = std::min(due, began + 2 * limits_.progress_timeout);
    }
    progress_deadline_ = std::min(progress_deadline_, due);
  }
}

void AttemptMachine::NoteBegun(int rank) {
  begun_.insert(rank);
  if (static_cast<int>(begun_.size()) >= assignment_.device_ids_size()) {
    start_deadline_ = absl::InfiniteFuture();
  }
}

void AttemptMachine::EndUnlessBegun() {
  start_deadline_ = absl::InfiniteFuture();
  if (phase_ != Phase::kRunning || end_.has_value() || terminating_) return;
  int silent = 0;
  while (begun_.count(silent) > 0) ++silent;
  GiveUp({"RANK_HUNG",
          absl::StrCat("rank ", assignment_.first_rank() + silent, " had not begun to train ",
                       absl::FormatDuration(limits_.start_timeout), " after its start",
                       progress_.stage().empty() ? "" : absl::StrCat(" (", progress_.stage(), ")"),
                       "; see its log, or allow more with the worker's start_timeout_ms"),
          true});
}

void AttemptMachine::LookForHungRanks(absl::Time now) {
  progress_deadline_ = absl::InfiniteFuture();
  if (phase_ != Phase::kRunning || end_.has_value() || terminating_) return;
  std::string culprit;
  std::string waiting;
  const auto whole_seconds = [](absl::Duration duration) {
    return absl::FormatDuration(absl::Trunc(duration, absl::Seconds(1)));
  };
  for (const auto& [rank, known] : activities_) {
    const TrainerActivity& activity = known.activity;
    const absl::Duration silent = now - known.heard;
    const absl::Duration since = silent + absl::Seconds(activity.seconds);
    const std::string last = absl::StrCat("rank ", assignment_.first_rank() + rank, " in step ",
                                          activity.step, ": ", activity.doing);
    if (silent >= limits_.progress_timeout) {
      culprit = absl::StrCat(last, "; not heard of for ", whole_seconds(silent));
    } else if (activity.waiting == TrainerActivity::Waiting::kForNothing &&
               since >= limits_.progress_timeout) {
      culprit = absl::StrCat(last, " for ", whole_seconds(since));
    } else if (activity.waiting == TrainerActivity::Waiting::kForRanks &&
               since >= 2 * limits_.progress_timeout) {
      waiting = last;
    }
  }
  if (!culprit.empty()) {
    GiveUp({"RANK_HUNG", absl::StrCat("a rank has hung: ", culprit), true});
  } else if (!waiting.empty()) {
    GiveUp({kRankLost,
            absl::StrCat("the ranks of this worker wait for others that do not come (", waiting,
                         "); the link between the workers may be cut"),
            true});
  }
}

// The process is ended for good; what it left is delivered before the end is told.
void AttemptMachine::GiveUp(AttemptEnd end) {
  end_ = std::move(end);
  phase_ = Phase::kDelivering;
  terminating_ = true;
  if (launched_) actions_.push_back(TerminateTrainer{});
}

void AttemptMachine::HandleEvent(const TrainerResult& result, absl::Time) {
  result_ = result;
  last_step_ = std::max(last_step_, result.last_step);
}

void AttemptMachine::HandleEvent(const TrainerStopped& stopped, absl::Time now) {
  stopped_ = true;
  last_step_ = std::max(last_step_, stopped.step);
  if (!stopped.path.empty()) HandleEvent(TrainerCheckpoint{stopped.step, stopped.path}, now);
}

// Handle(TrainerSaid)
void AttemptMachine::HandleEvent(const TrainerFailed&, absl::Time) {}
void AttemptMachine::HandleEvent(const TrainerContribution&, absl::Time) {}

}  // namespace offshoot::worker
