#include "trainer/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kRowTokens = 1024;

class BatchPlan : public testing::Test {
 protected:
  BatchPlan() {
    arch_.vocab_size = 1000;
    arch_.hidden_size = 256;
    for (int i = 0; i < 8; ++i) {
      LayerSpec layer;
      SoftmaxAttentionSpec attention;
      attention.heads = 4;
      attention.key_value_heads = 4;
      attention.head_dim = 64;
      layer.attention = attention;
      DenseMlpSpec mlp;
      mlp.intermediate = 1024;
      layer.feed_forward = mlp;
      arch_.layers.push_back(layer);
    }
  }

  static TrainSpec Spec(const nlohmann::json& changes) {
    nlohmann::json document = {{"spec_version", 1},
                               {"base_model", {{"path", "/model"}, {"digest", "sha256:aa"}}},
                               {"datasets", {{{"path", "/rows"}, {"type", "text"}}}},
                               {"per_device_train_batch_size", "auto"}};
    document.update(changes);
    return ParseTrainSpec(document);
  }

  // Every row has row_tokens.
  std::vector<BatchChoice> Choices(const nlohmann::json& changes, std::int64_t row_tokens) const {
    BatchOptions options;
    options.sequence_len = row_tokens;
    const MemoryShape shape = {.weight_bytes = 1'000'000, .bytes_per_element = 2};
    return BatchChoices(Spec(changes), arch_, shape, nullptr, options);
  }

  // What is taken where only the choice that needs least of those with this recomputation fits.
  static BatchChoice TakenWhereOnlyTheLeast(const std::vector<BatchChoice>& choices,
                                            Recomputed recomputed) {
    std::int64_t least = 0;
    for (const BatchChoice& choice : choices) {
      const std::int64_t needed = choice.estimate.Total();
      if (choice.recomputed == recomputed && (least == 0 || needed < least)) least = needed;
    }
    const std::unique_ptr<Collective> alone = MakeCollective(RankEnvironment(), "cpu", nullptr);
    return ChooseBatch(choices, least * 6 / 5, *alone);  // the estimate's margin is 15 %
  }

  ArchSpec arch_;
};

TEST_F(BatchPlan, LongRows_ComputeAsLittleAgainAsFits) {
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

TEST_F(BatchPlan, ShortRows_AreCutFinelyOnlyWithWholeLayersComputedAgain) {
  std::vector<std::int64_t> rows;
  for (const BatchChoice& choice : Choices(nlohmann::json::object(), 100)) {
    if (choice.recomputed != Recomputed::kLayers) rows.push_back(choice.rows);
  }
  EXPECT_EQ(rows, std::vector<std::int64_t>({8, 4, 8, 4}));  // 400 tokens at least, not 200
}

TEST_F(BatchPlan, WhatTheJobAsksFor_IsTheLeastThatIsComputedAgain) {
  EXPECT_EQ(Choices({{"gradient_checkpointing", true}}, kRowTokens).front().recomputed,
            Recomputed::kLayers);
  const nlohmann::json selective = {{"gradient_checkpointing", true},
                                    {"recompute_granularity", "selective"}};
  const std::vector<BatchChoice> choices = Choices(selective, kRowTokens);
  EXPECT_EQ(choices.front().recomputed, Recomputed::kFeedForward);
  EXPECT_EQ(choices.back().recomputed, Recomputed::kLayers);
}

TEST_F(BatchPlan, AChoice_IsReadAsItWasWritten) {
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
