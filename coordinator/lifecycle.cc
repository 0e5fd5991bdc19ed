#include "coordinator/lifecycle.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace offshoot {
namespace {

// What an event does in a state.
enum class Action {
  kIgnore,   // a repeat, or too late to matter
  kRefuse,   // the state forbids it: the user gets a sentence
  kNothing,  // already so: success without a change
  kStoreInputs,
  kFailInputs,
  kPassPreflight,
  kFailPreflight,
  kPlace,
  kStart,
  kKeepCheckpoint,
  kBeginPublishing,
  kKeepResult,
  kSucceed,
  kFailPublish,
  kEndAttempt,
  kLoseAttempt,
  kCloseAttempt,  // of a job that is already terminal
  kCancel,
  kPause,
  kPauseAttempt,  // checkpoint first
  kResume,
  kWithdrawPause,
  kPreempt,
  kTimeOut,
};

using enum Action;
using Row = std::array<Action, kJobStateCount>;

// The machine. Rows: events in the order of LifecycleEvent; columns: states in the order of
// JobState.
// clang-format off
constexpr std::array<Row, kLifecycleEventCount> kTable = {{
  //                   validating      queued          starting          running           publishing        succeeded      paused          failed         cancelled
  /* InputsResolved */ {kStoreInputs,   kIgnore,        kIgnore,          kIgnore,          kIgnore,          kIgnore,       kStoreInputs,   kIgnore,       kIgnore},
  /* InputsFailed   */ {kFailInputs,    kIgnore,        kIgnore,          kIgnore,          kIgnore,          kIgnore,       kFailInputs,    kIgnore,       kIgnore},
  /* PreflightPassed*/ {kPassPreflight, kIgnore,        kIgnore,          kIgnore,          kIgnore,          kIgnore,       kPassPreflight, kIgnore,       kIgnore},
  /* PreflightFailed*/ {kFailPreflight, kIgnore,        kIgnore,          kIgnore,          kIgnore,          kIgnore,       kFailPreflight, kIgnore,       kIgnore},
  /* Placed         */ {kRefuse,        kPlace,         kRefuse,          kRefuse,          kRefuse,          kRefuse,       kRefuse,        kRefuse,       kRefuse},
  /* Started        */ {kIgnore,        kIgnore,        kStart,           kIgnore,          kIgnore,          kIgnore,       kIgnore,        kIgnore,       kIgnore},
  /* Checkpointed   */ {kIgnore,        kIgnore,        kKeepCheckpoint,  kKeepCheckpoint,  kKeepCheckpoint,  kIgnore,       kIgnore,        kIgnore,       kIgnore},
  /* PublishingBegun*/ {kIgnore,        kIgnore,        kBeginPublishing, kBeginPublishing, kIgnore,          kIgnore,       kIgnore,        kIgnore,       kIgnore},
  /* ResultUploaded */ {kIgnore,        kIgnore,        kKeepResult,      kKeepResult,      kKeepResult,      kIgnore,       kIgnore,        kIgnore,       kIgnore},
  /* Published      */ {kIgnore,        kIgnore,        kIgnore,          kIgnore,          kSucceed,         kIgnore,       kIgnore,        kIgnore,       kIgnore},
  /* PublishFailed  */ {kIgnore,        kIgnore,        kIgnore,          kIgnore,          kFailPublish,     kIgnore,       kIgnore,        kIgnore,       kIgnore},
  /* AttemptEnded   */ {kIgnore,        kIgnore,        kEndAttempt,      kEndAttempt,      kEndAttempt,      kCloseAttempt, kIgnore,        kCloseAttempt, kCloseAttempt},
  /* AttemptLost    */ {kIgnore,        kIgnore,        kLoseAttempt,     kLoseAttempt,     kLoseAttempt,     kCloseAttempt, kIgnore,        kCloseAttempt, kCloseAttempt},
  /* Cancel         */ {kCancel,        kCancel,        kCancel,          kCancel,          kCancel,          kRefuse,       kCancel,        kRefuse,       kNothing},
  /* Pause          */ {kPause,         kPause,         kPauseAttempt,    kPauseAttempt,    kRefuse,          kRefuse,       kNothing,       kRefuse,       kRefuse},
  /* Resume         */ {kNothing,       kNothing,       kWithdrawPause,   kWithdrawPause,   kNothing,         kRefuse,       kResume,        kRefuse,       kRefuse},
  /* Preempt        */ {kIgnore,        kIgnore,        kPreempt,         kPreempt,         kIgnore,          kIgnore,       kIgnore,        kIgnore,       kIgnore},
  /* RuntimeExceeded*/ {kIgnore,        kIgnore,        kTimeOut,         kTimeOut,         kIgnore,          kIgnore,       kIgnore,        kIgnore,       kIgnore},
}};
// clang-format on

absl::string_view RequestName(const LifecycleEvent& event) {
  if (std::holds_alternative<CancelRequested>(event)) return "cancelled";
  if (std::holds_alternative<PauseRequested>(event)) return "paused";
  if (std::holds_alternative<ResumeRequested>(event)) return "resumed";
  return "placed";
}

// One transition under construction.
class Step {
 public:
  Step(const JobRecord& job, const LifecycleEvent& event, const LifecycleLimits& limits,
       absl::Time now)
      : event_(event), limits_(limits), now_(now) {
    transition_.job = job;
    transition_.changed = true;
  }

  Transition Take() && { return std::move(transition_); }

  void StoreInputs(const InputsResolved& event) {
    // They were looked for twice (an effect is repeated after a failed write): what was found first
    // is what the job is checked with.
    if (job().inputs != nullptr) {
      transition_.changed = false;
      return;
    }
    job().inputs = std::make_shared<const JobInputs>(event.inputs);
    job().message = "base model and data are found; waiting for a worker to check them";
    Tell();
  }

  void FailInputs(const InputsFailed& event) {
    if (job().inputs != nullptr) {
      transition_.changed = false;
      return;
    }
    Fail(event.reason_code, event.message);
  }

  void PassPreflight(const PreflightPassed& event) {
    job().preflighted = true;
    job().memory = event.memory;
    job().failures = 0;  // what the check cost is not the training's
    if (job().state == JobState::kValidating) job().state = JobState::kQueued;
    job().not_before = absl::InfinitePast();
    job().reason_code.clear();
    job().message = event.message;
    Tell();
  }

  void FailPreflight(const PreflightFailed& event) {
    const bool may_retry = event.retryable && !IsNeverRetried(event.reason_code);
    const bool free = may_retry && IsNobodysFault(event.reason_code);
    if (!may_retry || (!free && ++job().failures > limits_.retry_budget)) {
      Fail(event.reason_code, event.message);
      return;
    }
    job().not_before = now_ + BackoffAfter(job().failures, limits_);
    job().reason_code = event.reason_code;
    job().message =
        absl::StrCat("the check failed on the worker and is tried again: ", event.message);
    Tell();
  }

  void Place(const Placed& event) {
    AttemptRecord attempt;
    attempt.number = job().attempt_number() + 1;
    attempt.members = event.members;
    attempt.lease_id = event.lease_id;
    attempt.device_class = event.device_class;
    attempt.started = now_;
    job().attempts.push_back(std::move(attempt));
    job().state = JobState::kStarting;
    job().stop_intent = StopIntent::kNone;
    job().not_before = absl::InfinitePast();
    if (job().started == absl::InfinitePast()) job().started = now_;
    job().reason_code.clear();
    job().message = absl::StrCat("starting on ", job().attempts.back().WorkerNames());
    Do(EffectKind::kSendAssignment);
    Tell();
  }

  void Start(const Started& event) {
    attempt().first_step = event.first_step;
    job().total_steps = event.total_steps;
    job().state = JobState::kRunning;
    if (job().stop_intent == StopIntent::kNone) job().message.clear();
    Tell(event.first_step);
  }

  void KeepCheckpoint(const Checkpointed& event) {
    const std::int64_t before = job().checkpoint ? job().checkpoint->step : 0;
    if (event.checkpoint.step < before || event.checkpoint.files.empty()) {
      transition_.changed = false;
      return;
    }
    attempt().last_step = std::max(attempt().last_step, event.checkpoint.step);
    if (event.checkpoint.step > before) job().failures = 0;
    job().checkpoint = event.checkpoint;
    Do(EffectKind::kCollectFiles);
    Tell(event.checkpoint.step);
  }

  void BeginPublishing(const PublishingBegun& event) {
    attempt().last_step = std::max(attempt().last_step, event.last_step);
    job().state = JobState::kPublishing;
    job().message = "trained; the exported files are being verified and stored";
    Tell(event.last_step);
  }

  void KeepResult(const ResultUploaded& event) {
    attempt().last_step = std::max(attempt().last_step, event.last_step);
    if (attempt().first_step == 0) attempt().first_step = event.first_step;
    // The last thing an attempt does: its devices are free.
    CloseAttempt("FINISHED", "", event.first_step, event.last_step);
    job().state = JobState::kPublishing;
    job().result = event.result;
    Do(EffectKind::kPublish);
    Tell(event.last_step);
  }

  void Succeed(const Published& event) {
    job().derivative_id = event.derivative_id;
    End(JobState::kSucceeded, "", absl::StrCat("published as ", event.derivative_id));
  }

  void FailPublish(const PublishFailed& event) {
    job().result.reset();
    if (job().has_open_attempt()) Do(EffectKind::kStopAttempt, event.reason_code);
    CloseAttempt(event.reason_code, event.message, 0, 0);
    RetryOrFail(event.reason_code, event.message, !IsNeverRetried(event.reason_code));
  }

  void EndAttempt(const AttemptEnded& event) {
    CloseAttempt(event.reason_code, event.message, event.first_step, event.last_step);
    if (job().result) return;  // what it left is being published
    if (!event.log_tail.empty()) job().log_tail = event.log_tail;
    if (IsNobodysFault(event.reason_code)) {
      GiveBack(event.reason_code, event.message);
      return;
    }
    RetryOrFail(event.reason_code, event.message,
                event.retryable && !IsNeverRetried(event.reason_code));
  }

  void LoseAttempt(const AttemptLost& event) {
    CloseAttempt(event.reason_code, event.message, 0, event.last_step);
    if (job().result) return;
    GiveBack(event.reason_code, event.message);
  }

  void CloseOfTerminal() {
    if (!job().has_open_attempt()) {
      transition_.changed = false;
      return;
    }
    if (const auto* ended = std::get_if<AttemptEnded>(&event_)) {
      CloseAttempt(ended->reason_code, ended->message, ended->first_step, ended->last_step);
      if (job().log_tail.empty()) job().log_tail = ended->log_tail;
    } else if (const auto* lost = std::get_if<AttemptLost>(&event_)) {
      CloseAttempt(lost->reason_code, lost->message, 0, lost->last_step);
    }
  }

  void Cancel(const CancelRequested& event) {
    if (job().has_open_attempt()) Do(EffectKind::kStopAttempt, "CANCELLED");
    job().result.reset();
    End(JobState::kCancelled, "CANCELLED",
        event.reason.empty() ? "cancelled by request"
                             : absl::StrCat("cancelled by request: ", event.reason));
  }

  void Pause() {
    job().state = JobState::kPaused;
    job().reason_code = "PAUSED";
    job().message = "paused by request; resume it to go on";
    Tell();
  }

  void PauseAttempt() {
    if (job().stop_intent == StopIntent::kPause) {
      transition_.changed = false;
      return;
    }
    job().stop_intent = StopIntent::kPause;
    job().message = "pausing: the trainer writes a checkpoint first";
    Do(EffectKind::kStopAttempt, "PAUSED", /*checkpoint=*/true);
    Tell();
  }

  void Resume() {
    job().state = job().preflighted ? JobState::kQueued : JobState::kValidating;
    job().not_before = absl::InfinitePast();
    job().reason_code.clear();
    job().message.clear();
    if (!job().inputs) Do(EffectKind::kResolveInputs);
    Tell();
  }

  void WithdrawPause() {
    if (job().stop_intent != StopIntent::kPause) {
      transition_.changed = false;
      return;
    }
    // The trainer was already told to stop: it goes on as the next attempt.
    job().stop_intent = StopIntent::kPreempt;
    job().message = "goes on as soon as the trainer has written its checkpoint";
    Tell();
  }

  void Preempt(const PreemptRequested& event) {
    if (job().stop_intent != StopIntent::kNone) {
      transition_.changed = false;
      return;
    }
    job().stop_intent = StopIntent::kPreempt;
    job().message = "moves to other devices: the trainer writes a checkpoint first";
    Do(EffectKind::kStopAttempt, event.reason_code, /*checkpoint=*/true);
    Tell();
  }

  void TimeOut() {
    if (job().has_open_attempt()) Do(EffectKind::kStopAttempt, "RUNTIME_EXCEEDED");
    Fail("RUNTIME_EXCEEDED", absl::StrCat("ran longer than max_runtime (",
                                          absl::FormatDuration(job().definition->max_runtime),
                                          "); raise it or train fewer steps"));
  }

 private:
  JobRecord& job() { return transition_.job; }
  AttemptRecord& attempt() { return transition_.job.attempts.back(); }

  void Do(EffectKind kind, absl::string_view reason_code = "", bool checkpoint = false) {
    transition_.effects.push_back(
        Effect{kind, job().id(), job().attempt_number(), checkpoint, std::string(reason_code)});
  }

  void Tell(std::int64_t step = 0) {
    JobEventRecord record;
    record.job_id = job().id();
    record.sequence = ++job().last_sequence;
    record.time = now_;
    record.state = job().state;
    record.attempt = job().attempt_number();
    record.type = std::string(EventTypeName(event_));
    record.reason_code = job().reason_code;
    record.message = job().message;
    record.step = step;
    transition_.events.push_back(std::move(record));
  }

  void CloseAttempt(absl::string_view reason_code, absl::string_view message,
                    std::int64_t first_step, std::int64_t last_step) {
    if (!job().has_open_attempt()) return;
    attempt().open = false;
    attempt().finished = now_;
    attempt().reason_code = std::string(reason_code);
    attempt().message = std::string(message);
    if (attempt().first_step == 0) attempt().first_step = first_step;
    attempt().last_step = std::max(attempt().last_step, last_step);
  }

  // The attempt ended through nobody's fault: the job goes back to the queue, or rests.
  void GiveBack(absl::string_view reason_code, absl::string_view message) {
    const StopIntent intent = std::exchange(job().stop_intent, StopIntent::kNone);
    if (intent == StopIntent::kPause) {
      Pause();
      return;
    }
    job().state = JobState::kQueued;
    job().reason_code = std::string(reason_code);
    job().message = std::string(message);
    // A worker that hands everything back at once must not make the queue spin.
    if (intent == StopIntent::kNone) job().not_before = now_ + limits_.first_backoff;
    Tell();
  }

  void RetryOrFail(absl::string_view reason_code, absl::string_view message, bool may_retry) {
    const StopIntent intent = std::exchange(job().stop_intent, StopIntent::kNone);
    if (!may_retry) {
      Fail(reason_code, message);
      return;
    }
    if (++job().failures > limits_.retry_budget) {
      Fail(reason_code, absl::StrCat(message, " (gave up after ", job().failures,
                                     " attempts without a new checkpoint)"));
      return;
    }
    if (intent == StopIntent::kPause) {
      Pause();
      return;
    }
    job().state = JobState::kQueued;
    job().not_before = now_ + BackoffAfter(job().failures, limits_);
    job().reason_code = std::string(reason_code);
    job().message = std::string(message);
    Tell();
  }

  void Fail(absl::string_view reason_code, absl::string_view message) {
    const auto* ended = std::get_if<AttemptEnded>(&event_);
    if (ended != nullptr && !ended->culprit.empty()) {
      job().culprit = ended->culprit;
    } else if (!job().attempts.empty()) {
      job().culprit = attempt().leader().worker_name;
    }
    End(JobState::kFailed, reason_code, message);
  }

  void End(JobState state, absl::string_view reason_code, absl::string_view message) {
    job().state = state;
    job().reason_code = std::string(reason_code);
    job().message = std::string(message);
    job().finished = now_;
    job().stop_intent = StopIntent::kNone;
    job().not_before = absl::InfinitePast();
    Do(EffectKind::kCollectFiles);
    Tell();
  }

  const LifecycleEvent& event_;
  const LifecycleLimits& limits_;
  absl::Time now_;
  Transition transition_;
};

void Perform(Action action, const LifecycleEvent& event, Step& step) {
  switch (action) {
    case kIgnore:
    case kRefuse:
    case kNothing:
      return;
    case kStoreInputs:
      return step.StoreInputs(std::get<InputsResolved>(event));
    case kFailInputs:
      return step.FailInputs(std::get<InputsFailed>(event));
    case kPassPreflight:
      return step.PassPreflight(std::get<PreflightPassed>(event));
    case kFailPreflight:
      return step.FailPreflight(std::get<PreflightFailed>(event));
    case kPlace:
      return step.Place(std::get<Placed>(event));
    case kStart:
      return step.Start(std::get<Started>(event));
    case kKeepCheckpoint:
      return step.KeepCheckpoint(std::get<Checkpointed>(event));
    case kBeginPublishing:
      return step.BeginPublishing(std::get<PublishingBegun>(event));
    case kKeepResult:
      return step.KeepResult(std::get<ResultUploaded>(event));
    case kSucceed:
      return step.Succeed(std::get<Published>(event));
    case kFailPublish:
      return step.FailPublish(std::get<PublishFailed>(event));
    case kEndAttempt:
      return step.EndAttempt(std::get<AttemptEnded>(event));
    case kLoseAttempt:
      return step.LoseAttempt(std::get<AttemptLost>(event));
    case kCloseAttempt:
      return step.CloseOfTerminal();
    case kCancel:
      return step.Cancel(std::get<CancelRequested>(event));
    case kPause:
      return step.Pause();
    case kPauseAttempt:
      return step.PauseAttempt();
    case kResume:
      return step.Resume();
    case kWithdrawPause:
      return step.WithdrawPause();
    case kPreempt:
      return step.Preempt(std::get<PreemptRequested>(event));
    case kTimeOut:
      return step.TimeOut();
  }
}

}  // namespace

absl::string_view EventTypeName(const LifecycleEvent& event) {
  static constexpr std::array<absl::string_view, kLifecycleEventCount> kNames = {
      "inputs_resolved", "inputs_failed", "preflight_passed", "preflight_failed", "placed",
      "started",         "checkpointed",  "publishing",       "result_uploaded",  "published",
      "publish_failed",  "attempt_ended", "attempt_lost",     "cancelled",        "paused",
      "resumed",         "preempted",     "runtime_exceeded"};
  return kNames[event.index()];
}

absl::string_view EffectKindName(EffectKind kind) {
  switch (kind) {
    case EffectKind::kResolveInputs:
      return "resolve_inputs";
    case EffectKind::kSendAssignment:
      return "send_assignment";
    case EffectKind::kStopAttempt:
      return "stop_attempt";
    case EffectKind::kPublish:
      return "publish";
    case EffectKind::kCollectFiles:
      return "collect_files";
  }
  return "unknown";
}

bool IsNeverRetried(absl::string_view reason_code) {
  static constexpr absl::string_view kNever[] = {"BAD_SPEC", "BAD_DATA",      "BAD_MODEL",
                                                 "NAN_LOSS", "OUT_OF_MEMORY", "VERIFY_FAILED"};
  return std::find(std::begin(kNever), std::end(kNever), reason_code) != std::end(kNever);
}

bool IsNobodysFault(absl::string_view reason_code) {
  static constexpr absl::string_view kNobodys[] = {"STOPPED", "WORKER_LEAVING", "WORKER_RESTARTED",
                                                   "COORDINATOR_UNREACHABLE"};
  return std::find(std::begin(kNobodys), std::end(kNobodys), reason_code) != std::end(kNobodys);
}

absl::Duration BackoffAfter(int failures, const LifecycleLimits& limits) {
  absl::Duration backoff = limits.first_backoff;
  for (int i = 1; i < failures && backoff < limits.longest_backoff; ++i) backoff *= 2;
  return std::min(backoff, limits.longest_backoff);
}

Transition Submit(JobDefinition definition) {
  Transition transition;
  JobRecord& job = transition.job;
  const absl::Time now = definition.created;
  job.definition = std::make_shared<const JobDefinition>(std::move(definition));
  job.state = JobState::kValidating;
  job.message = "base model and data are being looked up";
  job.last_sequence = 1;
  transition.changed = true;
  transition.effects.push_back(Effect{EffectKind::kResolveInputs, job.id(), 0, false, ""});
  JobEventRecord record;
  record.job_id = job.id();
  record.sequence = 1;
  record.time = now;
  record.state = job.state;
  record.type = "submitted";
  record.message = job.message;
  transition.events.push_back(std::move(record));
  return transition;
}

absl::StatusOr<Transition> Next(const JobRecord& job, const LifecycleEvent& event,
                                const LifecycleLimits& limits, absl::Time now) {
  const Action action = kTable[event.index()][static_cast<int>(job.state) - 1];
  if (action == kRefuse) {
    return absl::FailedPreconditionError(absl::StrCat("job ", job.id().value(), " is ",
                                                      JobStateName(job.state), " and cannot be ",
                                                      RequestName(event), " any more"));
  }
  if (action == kIgnore || action == kNothing) {
    Transition transition;
    transition.job = job;
    return transition;
  }
  Step step(job, event, limits, now);
  Perform(action, event, step);
  return std::move(step).Take();
}

}  // namespace offshoot
