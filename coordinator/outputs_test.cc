#include "coordinator/outputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "common/temporary_directory.h"

namespace offshoot {
namespace {

const JobId kJob("job-a");

StepRecord Step(std::int64_t step, std::optional<double> eval_loss = std::nullopt) {
  StepRecord record;
  record.step = step;
  record.train_loss = 0.1 * static_cast<double>(step);
  record.tokens = 100 * step;
  record.eval_loss = eval_loss;
  return record;
}

class OutputsTest : public testing::Test {
 protected:
  std::vector<std::pair<std::int64_t, bool>> Marks(AttemptOutputs& from) {
    std::vector<std::pair<std::int64_t, bool>> marks;
    const auto read = from.ReadMetrics(kJob, 1, 0, 1 << 20);
    for (const StepRecord& step : read->first) {
      marks.emplace_back(step.step, step.eval_loss.has_value());
    }
    return marks;
  }
  TemporaryDirectory directory;
  OutputLimits limits;
  AttemptOutputs outputs{directory.path(), limits};
};

TEST_F(OutputsTest, Log_RepeatsAndOverlaps_AreDropped) {
  ASSERT_TRUE(outputs.AppendLog(kJob, 1, 0, "abc").ok());
  ASSERT_TRUE(outputs.AppendLog(kJob, 1, 0, "abc").ok());
  ASSERT_TRUE(outputs.AppendLog(kJob, 1, 1, "bcdef").ok());
  EXPECT_EQ(*outputs.ReadLog(kJob, 1, 0, 100), "abcdef");
  EXPECT_EQ(*outputs.ReadLog(kJob, 1, 4, 100), "ef");
  EXPECT_EQ(*outputs.ReadLog(kJob, 2, 0, 100), "");
}

TEST_F(OutputsTest, Log_BeyondItsBound_IsDroppedWithALine) {
  AttemptOutputs bounded(directory.path(), OutputLimits{10, 100});
  ASSERT_TRUE(bounded.AppendLog(kJob, 1, 0, "12345678").ok());
  ASSERT_TRUE(bounded.AppendLog(kJob, 1, 8, "90123").ok());
  ASSERT_TRUE(bounded.AppendLog(kJob, 1, 1'000'000'000'000, "far away").ok());
  const std::string log = *bounded.ReadLog(kJob, 1, 0, 1000);
  EXPECT_THAT(log, testing::HasSubstr("reached its bound"));
  EXPECT_LT(log.size(), 100u);
}

TEST_F(OutputsTest, Metrics_AreReadAsWritten) {
  StepRecord odd = Step(1);
  odd.train_loss = std::numeric_limits<double>::quiet_NaN();
  odd.grad_norm = std::numeric_limits<double>::infinity();
  odd.learning_rate = 0.1 + 0.2;
  ASSERT_TRUE(outputs.AppendMetrics(kJob, 1, {odd, Step(2, 2.5)}).ok());
  const auto read = outputs.ReadMetrics(kJob, 1, 0, 1 << 20);
  ASSERT_EQ(read->first.size(), 2u);
  EXPECT_TRUE(std::isnan(read->first[0].train_loss));
  EXPECT_TRUE(std::isinf(read->first[0].grad_norm));
  EXPECT_EQ(read->first[0].learning_rate, 0.1 + 0.2);
  EXPECT_EQ(read->first[0].eval_loss, std::nullopt);
  EXPECT_EQ(read->first[1].eval_loss, 2.5);
  EXPECT_TRUE(outputs.ReadMetrics(kJob, 1, read->second, 1 << 20)->first.empty());
}

TEST_F(OutputsTest, Metrics_RepeatsAreDropped_AlsoAfterARestart) {
  ASSERT_TRUE(outputs.AppendMetrics(kJob, 1, {Step(1), Step(2), Step(2, 3.0)}).ok());
  ASSERT_TRUE(outputs.AppendMetrics(kJob, 1, {Step(2), Step(2, 3.0), Step(3)}).ok());
  AttemptOutputs restarted(directory.path(), limits);
  EXPECT_EQ(restarted.LastStep(kJob, 1), 3);
  ASSERT_TRUE(restarted.AppendMetrics(kJob, 1, {Step(2), Step(3), Step(4)}).ok());
  const std::vector<std::pair<std::int64_t, bool>> expected = {
      {1, false}, {2, false}, {2, true}, {3, false}, {4, false}};
  EXPECT_EQ(Marks(restarted), expected);
  EXPECT_EQ(restarted.LastStep(kJob, 2), 0);
}

TEST_F(OutputsTest, Sweep_RemovesOldJobsOnly) {
  ASSERT_TRUE(outputs.AppendLog(kJob, 1, 0, "abc").ok());
  outputs.Sweep(absl::Now() - absl::Hours(1));
  EXPECT_EQ(*outputs.ReadLog(kJob, 1, 0, 100), "abc");
  outputs.Sweep(absl::Now() + absl::Seconds(1));
  EXPECT_EQ(*outputs.ReadLog(kJob, 1, 0, 100), "");
}

}  // namespace
}  // namespace offshoot
