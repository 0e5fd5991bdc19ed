#include "coordinator/lifecycle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace offshoot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

JobRecord NewJob() {
  JobDefinition definition;
  definition.job_id = JobId("job-1");
  definition.created = kNow;
  return Submit(definition).job;
}

Checkpointed CheckpointAt(std::int64_t step) {
  return Checkpointed{CheckpointRecord{step, 1, {{"manifest.json", "sha256:x", 1}}}};
}

// One of each, good enough to be taken.
std::vector<LifecycleEvent> OneOfEach() {
  return {InputsResolved{},
          InputsFailed{"INPUT_MISSING", "gone"},
          PreflightPassed{"checked"},
          PreflightFailed{"BAD_DATA", "line 7", false},
          Placed{{{WorkerId("wrk-1"), "ant", {"cpu:0"}}}, "lease-1"},
          Started{1, 100},
          CheckpointAt(10),
          PublishingBegun{100},
          ResultUploaded{ResultRecord{1, {{"adapter_model.safetensors", "sha256:y", 1}}, {}, {}}, 1,
                         100},
          Published{"drv-1"},
          PublishFailed{"RESULT_MISSING", "a file is missing"},
          AttemptEnded{"TRAINER_KILLED", "signal 9", true, 1, 7, "tail"},
          AttemptLost{"WORKER_LOST", "not heard of", 7},
          CancelRequested{"no need"},
          PauseRequested{},
          ResumeRequested{},
          PreemptRequested{"DRAINED"},
          RuntimeExceeded{}};
}

class Driver {
 public:
  explicit Driver(LifecycleLimits limits = {}) : limits_(limits) {}

  Driver& Do(const LifecycleEvent& event) {
    absl::StatusOr<Transition> next = Next(job, event, limits_, now);
    EXPECT_TRUE(next.ok()) << next.status();
    if (!next.ok()) return *this;
    changed = next->changed;
    if (next->changed) {
      job = next->job;
      effects = next->effects;
    } else {
      effects.clear();
    }
    return *this;
  }
  Driver& Queue() { return Do(InputsResolved{}).Do(PreflightPassed{}); }
  Driver& Place() { return Do(Placed{{{WorkerId("wrk-1"), "ant", {"cpu:0"}}}, "lease"}); }
  Driver& Run() { return Queue().Place().Do(Started{1, 100}); }

  JobRecord job = NewJob();
  std::vector<Effect> effects;
  bool changed = false;
  absl::Time now = kNow;

 private:
  LifecycleLimits limits_;
};

// A job brought into each state by events.
JobRecord JobIn(JobState state) {
  Driver driver;
  switch (state) {
    case JobState::kValidating:
      break;
    case JobState::kQueued:
      driver.Queue();
      break;
    case JobState::kStarting:
      driver.Queue().Place();
      break;
    case JobState::kRunning:
      driver.Run();
      break;
    case JobState::kPublishing:
      driver.Run().Do(PublishingBegun{100});
      break;
    case JobState::kSucceeded:
      driver.Run().Do(OneOfEach()[8]).Do(Published{"drv-1"});
      break;
    case JobState::kPaused:
      driver.Queue().Do(PauseRequested{});
      break;
    case JobState::kFailed:
      driver.Run().Do(AttemptEnded{"NAN_LOSS", "nan", false, 1, 3, ""});
      break;
    case JobState::kCancelled:
      driver.Run().Do(CancelRequested{});
      break;
  }
  EXPECT_EQ(driver.job.state, state);
  return driver.job;
}

constexpr int kRefused = -1;
constexpr int kSame = 0;

TEST(LifecycleTable, EveryEventInEveryState_LeadsWhereTheDiagramSays) {
  // Rows: OneOfEach; columns: JobState from 1. 0: unchanged state, -1: refused, else the new state.
  constexpr int kExpected[kLifecycleEventCount][kJobStateCount] = {
      {0, 0, 0, 0, 0, 0, 0, 0, 0},          // InputsResolved
      {8, 0, 0, 0, 0, 0, 0, 0, 0},          // InputsFailed (the paused job has its inputs)
      {2, 0, 0, 0, 0, 0, 0, 0, 0},          // PreflightPassed
      {8, 0, 0, 0, 0, 0, 8, 0, 0},          // PreflightFailed
      {-1, 3, -1, -1, -1, -1, -1, -1, -1},  // Placed
      {0, 0, 4, 0, 0, 0, 0, 0, 0},          // Started
      {0, 0, 0, 0, 0, 0, 0, 0, 0},          // Checkpointed
      {0, 0, 5, 5, 0, 0, 0, 0, 0},          // PublishingBegun
      {0, 0, 5, 5, 0, 0, 0, 0, 0},          // ResultUploaded
      {0, 0, 0, 0, 6, 0, 0, 0, 0},          // Published
      {0, 0, 0, 0, 2, 0, 0, 0, 0},          // PublishFailed
      {0, 0, 2, 2, 2, 0, 0, 0, 0},          // AttemptEnded
      {0, 0, 2, 2, 2, 0, 0, 0, 0},          // AttemptLost
      {9, 9, 9, 9, 9, -1, 9, -1, 0},        // Cancel
      {7, 7, 0, 0, -1, -1, 0, -1, -1},      // Pause
      {0, 0, 0, 0, 0, -1, 2, -1, -1},       // Resume
      {0, 0, 0, 0, 0, 0, 0, 0, 0},          // Preempt
      {0, 0, 8, 8, 0, 0, 0, 0, 0},          // RuntimeExceeded
  };
  const std::vector<LifecycleEvent> events = OneOfEach();
  ASSERT_EQ(events.size(), static_cast<std::size_t>(kLifecycleEventCount));
  for (std::size_t row = 0; row < events.size(); ++row) {
    ASSERT_EQ(events[row].index(), row);
    for (int column = 0; column < kJobStateCount; ++column) {
      const auto state = static_cast<JobState>(column + 1);
      const JobRecord job = JobIn(state);
      const absl::StatusOr<Transition> next = Next(job, events[row], {}, kNow);
      const int expected = kExpected[row][column];
      SCOPED_TRACE(testing::Message()
                   << EventTypeName(events[row]) << " in " << JobStateName(state));
      if (expected == kRefused) {
        EXPECT_TRUE(absl::IsFailedPrecondition(next.status()));
        EXPECT_THAT(std::string(next.status().message()), HasSubstr("job-1"));
        continue;
      }
      ASSERT_TRUE(next.ok()) << next.status();
      EXPECT_EQ(next->job.state, expected == kSame ? state : static_cast<JobState>(expected));
      if (!next->changed) {
        EXPECT_THAT(next->effects, IsEmpty());
        EXPECT_THAT(next->events, IsEmpty());
      }
    }
  }
}

TEST(Lifecycle_Inputs, NotFoundWhilePaused_FailTheJobUnlessItHasThem) {
  Driver without;
  without.Do(PauseRequested{}).Do(InputsFailed{"INPUT_MISSING", "gone"});
  EXPECT_EQ(without.job.state, JobState::kFailed);
}

TEST(LifecycleTable, EventSequences_AreDense) {
  Driver driver;
  std::int64_t last = 1;
  for (const LifecycleEvent& event :
       {LifecycleEvent(InputsResolved{}), LifecycleEvent(PreflightPassed{}),
        LifecycleEvent(Placed{{{WorkerId("w"), "w", {"cpu:0"}}}, "l"}),
        LifecycleEvent(Started{1, 9}), LifecycleEvent(CheckpointAt(5))}) {
    const absl::StatusOr<Transition> next = Next(driver.job, event, {}, kNow);
    ASSERT_TRUE(next.ok());
    ASSERT_EQ(next->events.size(), 1u);
    EXPECT_EQ(next->events.front().sequence, ++last);
    driver.job = next->job;
  }
  EXPECT_EQ(driver.job.last_sequence, last);
}

TEST(Lifecycle_Submit, NewJob_AsksForItsInputs) {
  JobDefinition definition;
  definition.job_id = JobId("job-9");
  const Transition born = Submit(definition);
  EXPECT_EQ(born.job.state, JobState::kValidating);
  EXPECT_THAT(born.effects,
              ElementsAre(Effect{EffectKind::kResolveInputs, JobId("job-9"), 0, false, ""}));
  EXPECT_EQ(born.events.front().type, "submitted");
}

TEST(Lifecycle_Placed, QueuedJob_OpensANumberedAttemptAndSendsIt) {
  Driver driver;
  driver.Queue().Place();
  EXPECT_TRUE(driver.job.has_open_attempt());
  EXPECT_EQ(driver.job.attempt_number(), 1);
  EXPECT_THAT(driver.effects,
              ElementsAre(Effect{EffectKind::kSendAssignment, JobId("job-1"), 1, false, ""}));
  driver.Do(AttemptLost{"WORKER_LOST", "gone", 0}).Place();
  EXPECT_EQ(driver.job.attempt_number(), 2);
}

TEST(Lifecycle_Failure, Retryable_SpendsTheBudgetWithGrowingBackoff) {
  Driver driver;
  driver.Run();
  absl::Duration before = absl::ZeroDuration();
  for (int failure = 1; failure <= 3; ++failure) {
    driver.Do(AttemptEnded{"TRAINER_KILLED", "signal 9", true, 1, 3, ""});
    ASSERT_EQ(driver.job.state, JobState::kQueued);
    EXPECT_GT(driver.job.not_before - kNow, before);
    before = driver.job.not_before - kNow;
    driver.Place();
  }
  driver.Do(AttemptEnded{"TRAINER_KILLED", "signal 9", true, 1, 3, ""});
  EXPECT_EQ(driver.job.state, JobState::kFailed);
  EXPECT_EQ(driver.job.reason_code, "TRAINER_KILLED");
  EXPECT_THAT(driver.job.message, HasSubstr("gave up after 4 attempts"));
  EXPECT_EQ(driver.job.culprit, "ant");
}

TEST(Lifecycle_Failure, ChecksThatFailed_AreNotCountedAgainstTheTraining) {
  Driver driver;
  driver.Do(InputsResolved{});
  for (int i = 0; i < 3; ++i) driver.Do(PreflightFailed{"TRAINER_KILLED", "signal 9", true});
  ASSERT_EQ(driver.job.state, JobState::kValidating);
  driver.Do(PreflightPassed{"checked"}).Place();
  driver.Do(AttemptEnded{"TRAINER_KILLED", "signal 9", true, 1, 3, ""});
  EXPECT_EQ(driver.job.state, JobState::kQueued);
}

TEST(Lifecycle_Failure, NewCheckpoint_RefillsTheBudget) {
  Driver driver;
  driver.Run();
  for (int step = 1; step <= 20; ++step) {
    driver.Do(CheckpointAt(step)).Do(AttemptEnded{"TRAINER_KILLED", "", true, 1, step, ""});
    ASSERT_EQ(driver.job.state, JobState::kQueued) << step;
    driver.Place().Do(Started{step + 1, 100});
  }
  // The same checkpoint again is none.
  for (int i = 0; i < 4; ++i) {
    driver.Do(CheckpointAt(20)).Do(AttemptEnded{"TRAINER_KILLED", "", true, 1, 20, ""});
    if (driver.job.state == JobState::kQueued) driver.Place().Do(Started{21, 100});
  }
  EXPECT_EQ(driver.job.state, JobState::kFailed);
}

TEST(Lifecycle_Failure, LostWorker_SpendsNothing) {
  Driver driver;
  driver.Run();
  for (int i = 0; i < 50; ++i) {
    driver.Do(AttemptLost{"WORKER_LOST", "not heard of", 1});
    ASSERT_EQ(driver.job.state, JobState::kQueued);
    EXPECT_EQ(driver.job.failures, 0);
    driver.Place().Do(Started{1, 100});
  }
}

TEST(Lifecycle_Failure, ReasonThatNeverHelps_FailsAtOnceWhateverTheWorkerSays) {
  for (const char* reason : {"BAD_SPEC", "BAD_DATA", "BAD_MODEL", "NAN_LOSS", "OUT_OF_MEMORY"}) {
    Driver driver;
    driver.Run().Do(AttemptEnded{reason, "why", true, 1, 3, "tail"});
    EXPECT_EQ(driver.job.state, JobState::kFailed) << reason;
    EXPECT_EQ(driver.job.reason_code, reason);
    EXPECT_EQ(driver.job.log_tail, "tail");
  }
}

TEST(Lifecycle_Backoff, ManyFailures_StaysBounded) {
  const LifecycleLimits limits;
  EXPECT_EQ(BackoffAfter(1, limits), limits.first_backoff);
  EXPECT_EQ(BackoffAfter(3, limits), 4 * limits.first_backoff);
  EXPECT_EQ(BackoffAfter(1'000'000, limits), limits.longest_backoff);
}

TEST(Lifecycle_Pause, RunningJob_CheckpointsThenRests) {
  Driver driver;
  driver.Run().Do(PauseRequested{});
  EXPECT_EQ(driver.job.state, JobState::kRunning);
  EXPECT_THAT(driver.effects,
              ElementsAre(Effect{EffectKind::kStopAttempt, JobId("job-1"), 1, true, "PAUSED"}));
  driver.Do(PauseRequested{});
  EXPECT_FALSE(driver.changed) << "asking twice is asking once";
  driver.Do(CheckpointAt(12)).Do(AttemptEnded{"STOPPED", "", true, 1, 12, ""});
  EXPECT_EQ(driver.job.state, JobState::kPaused);
  EXPECT_FALSE(driver.job.has_open_attempt());
  EXPECT_EQ(driver.job.checkpoint->step, 12);
  driver.Do(ResumeRequested{});
  EXPECT_EQ(driver.job.state, JobState::kQueued);
  EXPECT_EQ(driver.job.failures, 0);
}

TEST(Lifecycle_Pause, ResumedBeforeItStopped_GoesOnWithoutRest) {
  Driver driver;
  driver.Run().Do(PauseRequested{}).Do(ResumeRequested{});
  driver.Do(AttemptEnded{"STOPPED", "", true, 1, 12, ""});
  EXPECT_EQ(driver.job.state, JobState::kQueued);
  EXPECT_LE(driver.job.not_before, kNow);
}

TEST(Lifecycle_Pause, WorkerLostWhilePausing_RestsToo) {
  Driver driver;
  driver.Run().Do(PauseRequested{}).Do(AttemptLost{"WORKER_LOST", "", 3});
  EXPECT_EQ(driver.job.state, JobState::kPaused);
}

TEST(Lifecycle_Pause, ValidatingJob_IsStillCheckedWhenResumed) {
  Driver driver;
  driver.Do(PauseRequested{});
  EXPECT_EQ(driver.job.state, JobState::kPaused);
  driver.Do(InputsResolved{});
  driver.Do(ResumeRequested{});
  EXPECT_EQ(driver.job.state, JobState::kValidating);
  EXPECT_NE(driver.job.inputs, nullptr);
}

TEST(Lifecycle_Cancel, RunningJob_EndsAtOnceAndItsAttemptCloses_WhenTheWorkerSaysSo) {
  Driver driver;
  driver.Run().Do(CancelRequested{"no need"});
  EXPECT_EQ(driver.job.state, JobState::kCancelled);
  EXPECT_TRUE(driver.job.has_open_attempt()) << "its devices are still taken";
  EXPECT_EQ(driver.effects.front(),
            (Effect{EffectKind::kStopAttempt, JobId("job-1"), 1, false, "CANCELLED"}));
  const std::int64_t sequence = driver.job.last_sequence;
  driver.Do(AttemptEnded{"STOPPED", "", true, 1, 7, ""});
  EXPECT_EQ(driver.job.state, JobState::kCancelled);
  EXPECT_FALSE(driver.job.has_open_attempt());
  EXPECT_EQ(driver.job.attempts.back().last_step, 7);
  EXPECT_EQ(driver.job.last_sequence, sequence) << "nothing follows the terminal event";
}

TEST(Lifecycle_Result, AttemptEndsAfterwards_PublishingGoesOn) {
  Driver driver;
  driver.Run().Do(PublishingBegun{100}).Do(OneOfEach()[8]);
  EXPECT_EQ(driver.effects.front().kind, EffectKind::kPublish);
  EXPECT_FALSE(driver.job.has_open_attempt()) << "the result is the last thing it does";
  driver.Do(AttemptLost{"WORKER_LOST", "", 100});
  EXPECT_EQ(driver.job.state, JobState::kPublishing);
  driver.Do(Published{"drv-7"});
  EXPECT_EQ(driver.job.state, JobState::kSucceeded);
  EXPECT_EQ(driver.job.derivative_id, "drv-7");
  driver.Do(Published{"drv-7"});
  EXPECT_FALSE(driver.changed);
}

TEST(Lifecycle_Attempts, EachKeepsItsFirstAndLastStep) {
  Driver driver;
  driver.Run().Do(CheckpointAt(20)).Do(AttemptLost{"WORKER_LOST", "", 27});
  driver.Place().Do(Started{21, 100}).Do(OneOfEach()[8]);
  EXPECT_EQ(driver.job.attempts[0].first_step, 1);
  EXPECT_EQ(driver.job.attempts[0].last_step, 27);
  EXPECT_EQ(driver.job.attempts[1].first_step, 21);
  EXPECT_EQ(driver.job.attempts[1].last_step, 100);
}

TEST(Lifecycle_Checkpoint, OlderThanTheNewest_IsIgnored) {
  Driver driver;
  driver.Run().Do(CheckpointAt(20)).Do(CheckpointAt(10));
  EXPECT_FALSE(driver.changed);
  EXPECT_EQ(driver.job.checkpoint->step, 20);
}

}  // namespace
}  // namespace offshoot
