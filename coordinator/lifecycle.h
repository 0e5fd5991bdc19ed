// The life of a job as one pure function: Next(job, event) -> {job, effects}. Nothing here reads a
// clock, a disk or a network; the controller stores the transition together with its effects and
// carries the effects out afterwards, so that a crash in between only repeats them. Every effect is
// idempotent. Thread-safe (no state).
//
//                 inputs/preflight bad            budget spent, bad spec, bad data, NaN, out of
//                 memory
//         ┌─────────────────────────────▶ FAILED ◀──────────────┬───────────────┐
//         │                                                     │               │
//     VALIDATING ──preflight passed──▶ QUEUED ──placed──▶ STARTING ──started──▶ RUNNING
//         │  ▲                          │  ▲ ▲                │ │               │ │
//    pause│  │resume               pause│  │ └──── lost, preempted, failed ──────┘ │ trained
//         ▼  │ (not preflighted)        ▼  │resume                                ▼
//        PAUSED ◀───────────────────── PAUSED ◀── stopped with a checkpoint    PUBLISHING
//                                                                               │ published
//     CANCELLED: from every state that is not terminal                          ▼
//                                                                           SUCCEEDED
//
// A terminal job may keep an open attempt for a moment: its worker was told to stop it, and its
// devices stay taken until the worker says it ended or its lease expires.
// The table that is the machine is kTable in lifecycle.cc.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/records.h"

namespace offshoot {

// --- events: what happened ---

struct InputsResolved {
  JobInputs inputs;
};
struct InputsFailed {
  std::string reason_code;
  std::string message;
};
struct PreflightPassed {
  std::string message;
  std::shared_ptr<const MemoryNeeds> memory = nullptr;
};
// retryable: the worker failed, not the job.
struct PreflightFailed {
  std::string reason_code;
  std::string message;
  bool retryable = false;
};
struct Placed {
  std::vector<GangMember> members;  // that of rank 0 first
  std::string lease_id;
  std::string device_class = {};
};
struct Started {
  std::int64_t first_step = 0;
  std::int64_t total_steps = 0;
};
struct Checkpointed {
  CheckpointRecord checkpoint;
};
struct PublishingBegun {
  std::int64_t last_step = 0;
};
struct ResultUploaded {
  ResultRecord result;
  std::int64_t first_step = 0;
  std::int64_t last_step = 0;
};
struct Published {
  std::string derivative_id;
};
struct PublishFailed {
  std::string reason_code;
  std::string message;
};
struct AttemptEnded {
  std::string reason_code;
  std::string message;
  bool retryable = false;
  std::int64_t first_step = 0;
  std::int64_t last_step = 0;
  std::string log_tail;
  std::string culprit = {};  // the worker that caused it; empty: that of rank 0
};
// Its worker is gone or no longer holds it. last_step: newest step it was seen to train.
struct AttemptLost {
  std::string reason_code;
  std::string message;
  std::int64_t last_step = 0;
};
struct CancelRequested {
  std::string reason;
};
struct PauseRequested {};
struct ResumeRequested {};
struct PreemptRequested {
  std::string reason_code;
};
struct RuntimeExceeded {};

// Kept in the order of EventKind.
using LifecycleEvent =
    std::variant<InputsResolved, InputsFailed, PreflightPassed, PreflightFailed, Placed, Started,
                 Checkpointed, PublishingBegun, ResultUploaded, Published, PublishFailed,
                 AttemptEnded, AttemptLost, CancelRequested, PauseRequested, ResumeRequested,
                 PreemptRequested, RuntimeExceeded>;
inline constexpr int kLifecycleEventCount = std::variant_size_v<LifecycleEvent>;
absl::string_view EventTypeName(const LifecycleEvent& event);  // "preflight_passed"

// --- effects: what must be done once the transition is durable ---

enum class EffectKind : int {
  kResolveInputs = 1,   // find and digest base model and data, then InputsResolved/InputsFailed
  kSendAssignment = 2,  // tell the worker to run the attempt
  kStopAttempt = 3,     // tell the worker to stop it
  kPublish = 4,         // register the derivative, then Published/PublishFailed
  kCollectFiles = 5,    // drop artifacts that nothing names any more
};

struct Effect {
  EffectKind kind = EffectKind::kResolveInputs;
  JobId job_id;
  std::int32_t attempt = 0;
  bool checkpoint = false;  // kStopAttempt: checkpoint first
  std::string reason_code;  // kStopAttempt
  bool operator==(const Effect&) const = default;
};
absl::string_view EffectKindName(EffectKind kind);

struct LifecycleLimits {
  int retry_budget = 3;  // failed attempts in a row without a new checkpoint
  absl::Duration first_backoff = absl::Seconds(1);
  absl::Duration longest_backoff = absl::Minutes(5);
};

struct Transition {
  JobRecord job;
  std::vector<Effect> effects;
  // What WatchJob tells; empty when the event changed nothing worth telling.
  std::vector<JobEventRecord> events;
  bool changed = false;  // false: the event was a repeat or came too late
};

// The first transition: a job is born validating.
Transition Submit(JobDefinition definition);

// FAILED_PRECONDITION (a sentence for the user) when the job's state forbids what was asked. Events
// of attempts are only to be given for the job's newest attempt: fencing is the caller's.
absl::StatusOr<Transition> Next(const JobRecord& job, const LifecycleEvent& event,
                                const LifecycleLimits& limits, absl::Time now);

// Reason codes after which another attempt would end the same way.
bool IsNeverRetried(absl::string_view reason_code);
// Reason codes with which a worker gives an attempt back: they spend no retry.
bool IsNobodysFault(absl::string_view reason_code);
// first * 2^(failures-1), at most longest.
absl::Duration BackoffAfter(int failures, const LifecycleLimits& limits);

}  // namespace offshoot
