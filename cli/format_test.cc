#include "cli/format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "cli/run_report.h"

namespace offshoot::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(FormatTable, Columns_AreAlignedByCharactersNotBytes) {
  EXPECT_EQ(FormatTable({{"A", "B"}, {"caf\xC3\xA9", "x"}, {"long word", ""}}),
            "A          B\ncaf\xC3\xA9       x\nlong word\n");
}

TEST(StateName, EveryState_HasAName) {
  EXPECT_EQ(StateName(v1::JOB_STATE_RUNNING), "running");
  EXPECT_EQ(StateName(v1::WORKER_STATE_SET_ASIDE), "set aside");
  EXPECT_EQ(StateName(v1::JOB_STATE_UNSPECIFIED), "unknown");
  EXPECT_EQ(ParseJobState("paused").value(), v1::JOB_STATE_PAUSED);
  EXPECT_FALSE(ParseJobState("unknown").ok());
}

TEST(FormatProgress, RunningJob_HasStepLossSpeedAndTimeLeft) {
  v1::Job job;
  job.set_state(v1::JOB_STATE_RUNNING);
  v1::Progress& progress = *job.mutable_progress();
  progress.set_stage("training");
  progress.set_step(12);
  progress.set_total_steps(40);
  progress.set_train_loss(2.9134);
  progress.set_tokens_per_second(412.4);
  progress.set_estimated_seconds_left(63);
  EXPECT_EQ(FormatProgress(job),
            "running  step 12/40 (30 %)  loss 2.913  412 tok/s  1 min 3 s left");
  progress.set_stage("evaluating");
  EXPECT_THAT(FormatProgress(job), HasSubstr("running  evaluating"));
  progress.set_train_loss(std::nan(""));
  EXPECT_THAT(FormatProgress(job), HasSubstr("loss nan"));
}

TEST(FormatProgress, QueuedJob_SaysWhy) {
  v1::Job job;
  job.set_state(v1::JOB_STATE_QUEUED);
  job.set_message("waits for a cuda device");
  EXPECT_EQ(FormatProgress(job), "queued  waits for a cuda device");
}

TEST(FormatEvent, Parts_AreThereWhenSet) {
  v1::JobEvent event;
  event.set_state(v1::JOB_STATE_RUNNING);
  event.set_type("checkpointed");
  event.set_step(20);
  event.set_attempt(2);
  event.set_message("fine");
  EXPECT_THAT(FormatEvent(event), HasSubstr("running  checkpointed at step 20 (attempt 2): fine"));
}

TEST(FormatTime, Unset_IsADash) {
  EXPECT_EQ(FormatTime({}), "-");
  EXPECT_EQ(FormatAge({}, absl::UnixEpoch()), "-");
  google::protobuf::Timestamp time;
  time.set_seconds(1'700'000'000);
  EXPECT_EQ(FormatTime(time), "2023-11-14 22:13:20 UTC");
  EXPECT_EQ(FormatAge(time, absl::FromUnixSeconds(1'700'000'125)), "2 min 5 s");
}

v1::Derivative Published() {
  v1::Derivative derivative;
  derivative.set_derivative_id("drv-1");
  derivative.set_base_eval_loss(4.25);
  derivative.set_eval_loss(2.9);
  derivative.set_size_bytes(3 << 20);
  return derivative;
}

TEST(RunReport, LossesAndSamples_StandSideBySide) {
  const std::string text = FormatRunReport(
      Published(),
      R"({"samples": [{"prompt": "Define 'x'.", "base": "Well,\nso", "derivative": "a letter"}]})",
      "out");
  EXPECT_THAT(text, HasSubstr("               base   derivative  change\n"
                              "held-out loss  4.250  2.900       -31.8 %\n"));
  EXPECT_THAT(text, HasSubstr("prompt      Define 'x'.\nbase        Well,\n            so\n"
                              "derivative  a letter\n"));
  EXPECT_THAT(text, HasSubstr("lies in out"));
}

TEST(RunReport, OddLineage_IsLeftOut) {
  for (const char* json : {"", "[]", "{\"samples\": 3}", "{\"samples\": [7]}", "{"}) {
    const std::string text = FormatRunReport(Published(), json, "out");
    EXPECT_THAT(text, HasSubstr("held-out loss")) << json;
    EXPECT_THAT(text, Not(HasSubstr("prompt"))) << json;
  }
}

TEST(RunReport, NothingHeldOut_SaysSo) {
  v1::Derivative derivative;
  EXPECT_THAT(FormatRunReport(derivative, "", "out"), HasSubstr("nothing was held out"));
}

}  // namespace
}  // namespace offshoot::cli
