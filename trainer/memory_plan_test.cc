#include "trainer/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/demo_arch.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kRowTokens = 1024;

TrainSpec Spec(const nlohmann::json& changes) {
  nlohmann::json document = {{"spec_version", 1},
                             {"base_model", {{"path", "/model"}, {"digest", "sha256:aa"}}},
                             {"datasets", {{{"path", "/rows"}, {"type", "text"}}}},
                             {"per_device_train_batch_size", "auto"}};
  document.update(changes);
  return ParseTrainSpec(document);
}

// Every row has row_tokens.
std::vector<BatchChoice> Choices(const nlohmann::json& changes, std::int64_t row_tokens) {
  BatchOptions options;
  options.sequence_len = row_tokens;
  const MemoryShape shape = {.weight_bytes = 1'000'000, .bytes_per_element = 2};
  return BatchChoices(Spec(changes), DemoModel(), shape, nullptr, options);
}

// What is taken where only the choice that needs least of those with this recomputation fits.
BatchChoice TakenWhereOnlyTheLeast(const std::vector<BatchChoice>& choices, Recomputed recomputed) {
  std::int64_t least = 0;
  for (const BatchChoice& choice : choices) {
    const std::int64_t needed = choice.estimate.Total();
    if (choice.recomputed == recomputed && (least == 0 || needed < least)) least = needed;
  }
  const std::unique_ptr<Collective> alone = MakeCollective(RankEnvironment(), "cpu", nullptr);
  return ChooseBatch(choices, least * 6 / 5, *alone);  // the estimate's margin is 15 %
}

TEST(BatchPlan, LongRows_ComputeAsLittleAgainAsFits) {
  const std::vector<BatchChoice> choices = Choices(nlohmann::json::object(), kRowTokens);
  std::vector<std::pair<Recomputed, std::int64_t>> order;
  for (const BatchChoice& choice : choices) {
    order.emplace_back(choice.recomputed, choice.rows);
    EXPECT_EQ(choice.rows * choice.accumulation, kAutoRows);
    EXPECT_EQ(choice.tokens, choice.rows * kRowTokens);
  }
  std::vector<std::pair<Recomputed, std::int64_t>> want;
  for (const auto recomputed :
       {Recomputed::kNothing, Recomputed::kFeedForward, Recomputed::kLayers}) {
    for (const std::int64_t rows : {8, 4, 2, 1}) want.emplace_back(recomputed, rows);
  }
  EXPECT_EQ(order, want);
  for (const auto recomputed :
       {Recomputed::kNothing, Recomputed::kFeedForward, Recomputed::kLayers}) {
    const BatchChoice taken = TakenWhereOnlyTheLeast(choices, recomputed);
    EXPECT_EQ(taken.recomputed, recomputed);
    EXPECT_EQ(taken.rows, 1);
  }
}

TEST(BatchPlan, ShortRows_AreCutFinelyOnlyWithWholeLayersComputedAgain) {
  std::vector<std::int64_t> rows;
  for (const BatchChoice& choice : Choices(nlohmann::json::object(), 100)) {
    if (choice.recomputed != Recomputed::kLayers) rows.push_back(choice.rows);
  }
  EXPECT_EQ(rows, std::vector<std::int64_t>({8, 4, 8, 4}));  // 400 tokens at least, not 200
}

TEST(BatchPlan, WhatTheJobAsksFor_IsTheLeastThatIsComputedAgain) {
  EXPECT_EQ(Choices({{"gradient_checkpointing", true}}, kRowTokens).front().recomputed,
            Recomputed::kLayers);
  const nlohmann::json selective = {{"gradient_checkpointing", true},
                                    {"recompute_granularity", "selective"}};
  const std::vector<BatchChoice> choices = Choices(selective, kRowTokens);
  EXPECT_EQ(choices.front().recomputed, Recomputed::kFeedForward);
  EXPECT_EQ(choices.back().recomputed, Recomputed::kLayers);
}

TEST(BatchPlan, AChoice_IsReadAsItWasWritten) {
  for (const auto recomputed :
       {Recomputed::kNothing, Recomputed::kFeedForward, Recomputed::kLayers}) {
    TrainSpec spec =
        Spec({{"gradient_checkpointing", true}, {"recompute_granularity", "selective"}});
    BatchChoice choice;
    choice.recomputed = recomputed;
    SetBatch(choice, spec);
    EXPECT_EQ(spec.recomputed, recomputed);
    EXPECT_EQ(ReadRecomputed(spec.resolved), recomputed);
    EXPECT_EQ(ReadRecomputed(TrainingIdentity(spec)), recomputed);
  }
}

}  // namespace
}  // namespace offshoot::trainer
