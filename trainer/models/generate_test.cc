#include "trainer/models/generate.h"

#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace offshoot::trainer {
namespace {

// Probabilities 0.1, 0.4, 0.2, 0.3.
at::Tensor SomeLogits() { return at::tensor(std::vector<float>{0.1F, 0.4F, 0.2F, 0.3F}).log(); }

TEST(ChooseToken, TemperatureZero_TakesTheLikeliest) {
  for (const double uniform : {0.0, 0.5, 0.999}) {
    EXPECT_EQ(ChooseToken(SomeLogits(), {}, uniform), 1);
  }
}

std::map<std::int64_t, int> Histogram(const GenerateOptions& options) {
  std::map<std::int64_t, int> counts;
  for (int i = 0; i < 1000; ++i) ++counts[ChooseToken(SomeLogits(), options, (i + 0.5) / 1000.0)];
  return counts;
}

TEST(ChooseToken, TemperatureOne_FollowsTheProbabilities) {
  GenerateOptions options;
  options.temperature = 1.0;
  const auto counts = Histogram(options);
  EXPECT_NEAR(counts.at(0), 100, 2);
  EXPECT_NEAR(counts.at(1), 400, 2);
  EXPECT_NEAR(counts.at(2), 200, 2);
  EXPECT_NEAR(counts.at(3), 300, 2);
}

TEST(ChooseToken, TopK_KeepsTheLikeliestAndTheirRatio) {
  GenerateOptions options;
  options.temperature = 1.0;
  options.top_k = 2;
  const auto counts = Histogram(options);
  EXPECT_EQ(counts.size(), 2U);
  EXPECT_NEAR(counts.at(1), 1000 * 4 / 7, 3);
  EXPECT_NEAR(counts.at(3), 1000 * 3 / 7, 3);
}

TEST(ChooseToken, TopP_KeepsTheFewestThatReachIt) {
  GenerateOptions options;
  options.temperature = 1.0;
  options.top_p = 0.69;
  EXPECT_EQ(Histogram(options).size(), 2U);
  options.top_p = 0.71;
  EXPECT_EQ(Histogram(options).size(), 3U);
  options.top_p = 0.0;
  EXPECT_EQ(Histogram(options).size(), 1U);
}

TEST(ChooseToken, HighTemperature_Flattens) {
  GenerateOptions options;
  options.temperature = 100.0;
  EXPECT_NEAR(Histogram(options).at(0), 250, 10);
}

}  // namespace
}  // namespace offshoot::trainer
