#include "trainer/data/batch_plan.h"

#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "trainer/data/data_testing.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

std::vector<std::int64_t> Lengths(std::size_t count, std::uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 0; i < count; ++i) lengths.push_back(2 + random() % 60);
  return lengths;
}

std::vector<std::int64_t> AllRows(BatchPlanner* planner, std::int64_t epoch) {
  std::vector<std::int64_t> rows;
  for (std::int64_t step = 0; step < planner->StepsInEpoch(epoch); ++step) {
    for (const MicroBatch& batch : planner->Step({epoch, step}).micro_batches) {
      rows.insert(rows.end(), batch.begin(), batch.end());
    }
  }
  return rows;
}

std::vector<std::int64_t> Sorted(std::vector<std::int64_t> rows) {
  std::sort(rows.begin(), rows.end());
  return rows;
}

std::vector<std::int64_t> UpTo(std::int64_t count) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

class AllModes : public testing::TestWithParam<BatchOptions> {};

TEST_P(AllModes, EveryEpoch_HasEachRowOnce) {
  const FakeDataset dataset(Lengths(203));
  BatchPlanner planner(dataset, GetParam());
  for (const std::int64_t epoch : {0, 1, 5}) {
    EXPECT_EQ(Sorted(AllRows(&planner, epoch)), UpTo(203));
  }
}

TEST_P(AllModes, AnyStep_IsAPureFunctionOfTheCursor) {
  const FakeDataset dataset(Lengths(203));
  BatchPlanner straight(dataset, GetParam());
  BatchPlanner jumping(dataset, GetParam());
  DataCursor cursor;
  std::vector<std::pair<DataCursor, StepPlan>> seen;
  for (int i = 0; i < 40; ++i) {
    seen.emplace_back(cursor, straight.Step(cursor));
    cursor = straight.Next(cursor);
  }
  std::reverse(seen.begin(), seen.end());
  for (const auto& [at, plan] : seen) {
    EXPECT_EQ(jumping.Step(at).micro_batches, plan.micro_batches);
    EXPECT_EQ(jumping.Step(at).trained_tokens, plan.trained_tokens);
  }
}

TEST_P(AllModes, TrainedTokens_AreThoseOfTheRows) {
  const FakeDataset dataset(Lengths(203), 2);
  BatchPlanner planner(dataset, GetParam());
  for (std::int64_t step = 0; step < planner.StepsInEpoch(0); ++step) {
    const StepPlan& plan = planner.Step({0, step});
    std::int64_t trained = 0;
    std::vector<std::int64_t> tokens;
    for (const MicroBatch& batch : plan.micro_batches) {
      const TokenBatch made = MakeTokenBatch(dataset, batch);
      trained += made.trained_tokens;
      for (const std::int64_t row : batch) {
        tokens.push_back(static_cast<std::int64_t>(dataset.ids(row).size()));
      }
    }
    EXPECT_EQ(plan.trained_tokens, trained);
    EXPECT_EQ(plan.row_tokens, tokens);
  }
}

TEST_P(AllModes, Shares_AreAPartitionOfTheStepInTheWantedProportion) {
  const FakeDataset dataset(Lengths(203));
  BatchOptions options = GetParam();
  options.world_size = 3;
  options.accumulation = 8;
  BatchPlanner planner(dataset, options);
  const StepPlan& plan = planner.Step({0, 0});
  std::vector<std::int64_t> all;
  for (const MicroBatch& batch : plan.micro_batches)
    all.insert(all.end(), batch.begin(), batch.end());
  const std::vector<double> shares = {1, 3, 2};
  const std::vector<RankSpeed> speeds = {{.speed = 1}, {.speed = 3}, {.speed = 2}};
  std::vector<std::int64_t> together;
  std::vector<double> tokens(3, 0);
  for (std::int64_t rank = 0; rank < 3; ++rank) {
    for (const MicroBatch& batch : RankShare(plan, options, rank, speeds)) {
      std::int64_t in_batch = 0;
      for (const std::int64_t row : batch) {
        together.push_back(row);
        in_batch += static_cast<std::int64_t>(dataset.ids(row).size());
      }
      tokens[static_cast<std::size_t>(rank)] += static_cast<double>(in_batch);
      if (options.sample_packing) {
        EXPECT_LE(in_batch, options.rows_per_micro_batch * options.sequence_len);
      } else {
        EXPECT_LE(static_cast<std::int64_t>(batch.size()), options.rows_per_micro_batch);
      }
    }
  }
  std::sort(together.begin(), together.end());
  std::sort(all.begin(), all.end());
  EXPECT_EQ(together, all);
  const double sum = tokens[0] + tokens[1] + tokens[2];
  for (std::size_t rank = 0; rank < 3; ++rank) {
    EXPECT_NEAR(tokens[rank] / sum, shares[rank] / 6, 62 / sum) << "rank " << rank;
  }
}

std::vector<BatchOptions> Modes() {
  BatchOptions plain = {
      .rows_per_micro_batch = 3, .accumulation = 2, .seed = 7, .sequence_len = 64};
  BatchOptions ordered = plain;
  ordered.shuffle = false;
  BatchOptions grouped = plain;
  grouped.group_by_length = true;
  BatchOptions packed = plain;
  packed.sample_packing = true;
  packed.rows_per_micro_batch = 2;
  return {plain, ordered, grouped, packed};
}

INSTANTIATE_TEST_SUITE_P(All, AllModes, testing::ValuesIn(Modes()), [](const auto& info) {
  return info.param.sample_packing    ? "Packed"
         : info.param.group_by_length ? "Grouped"
         : info.param.shuffle         ? "Shuffled"
                                      : "Ordered";
});

TEST(BatchPlanner, NoShuffle_FileOrderAndAPartialLastStep) {
  const FakeDataset dataset(Lengths(7));
  BatchPlanner planner(dataset, {.rows_per_micro_batch = 2, .accumulation = 2, .shuffle = false});
  ASSERT_EQ(planner.StepsInEpoch(0), 2);
  EXPECT_THAT(planner.Step({0, 0}).micro_batches,
              ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(planner.Step({0, 1}).micro_batches, ElementsAre(ElementsAre(4, 5), ElementsAre(6)));
  EXPECT_EQ(planner.Next({0, 0}), (DataCursor{0, 1}));
  EXPECT_EQ(planner.Next({0, 1}), (DataCursor{1, 0}));
}

TEST(BatchPlanner, SeedAndEpoch_ChangeTheOrder) {
  const FakeDataset dataset(Lengths(50));
  BatchPlanner a(dataset, {.seed = 1});
  BatchPlanner b(dataset, {.seed = 2});
  EXPECT_NE(AllRows(&a, 0), AllRows(&a, 1));
  EXPECT_NE(AllRows(&a, 0), AllRows(&b, 0));
}

// Computed from the formulas of counter_random.h in Python (seed 42, epoch 1): a change here
// changes what resumed jobs train.
TEST(BatchPlanner, Order_IsTheWrittenOne) {
  const FakeDataset dataset(Lengths(10));
  BatchPlanner planner(dataset, {.seed = 42});
  EXPECT_THAT(AllRows(&planner, 1), ElementsAre(2, 6, 4, 1, 7, 0, 5, 9, 3, 8));
}

TEST(BatchPlanner, Grouped_MicroBatchesHaveLikeLengths) {
  const std::vector<std::int64_t> lengths = Lengths(800);
  const FakeDataset dataset(lengths);
  const auto padding = [&](bool grouped) {
    BatchPlanner planner(dataset, {.rows_per_micro_batch = 8, .group_by_length = grouped});
    std::int64_t wasted = 0;
    for (std::int64_t step = 0; step < planner.StepsInEpoch(0); ++step) {
      for (const MicroBatch& batch : planner.Step({0, step}).micro_batches) {
        std::int64_t longest = 0, sum = 0;
        for (const std::int64_t row : batch) {
          longest = std::max(longest, lengths[static_cast<std::size_t>(row)]);
          sum += lengths[static_cast<std::size_t>(row)];
        }
        wasted += longest * static_cast<std::int64_t>(batch.size()) - sum;
      }
    }
    return wasted;
  };
  EXPECT_LT(padding(true) * 10, padding(false));
}

TEST(BatchPlanner, Packed_BlocksAreFullAndNoneIsOverfull) {
  const std::vector<std::int64_t> lengths = Lengths(1000);
  const FakeDataset dataset(lengths);
  BatchPlanner planner(dataset, {.sample_packing = true, .sequence_len = 256});
  const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  const std::int64_t least = (total + 255) / 256;
  EXPECT_LE(planner.StepsInEpoch(0), least + 1);
  for (std::int64_t step = 0; step < planner.StepsInEpoch(0); ++step) {
    ASSERT_THAT(planner.Step({0, step}).micro_batches, SizeIs(1));
    EXPECT_LE(MakeTokenBatch(dataset, planner.Step({0, step}).micro_batches[0]).row_offsets.back(),
              256);
  }
}

TEST(BatchPlanner, TotalSteps_EpochsMayBeFractions) {
  const FakeDataset dataset(Lengths(10));
  BatchPlanner planner(dataset, {.rows_per_micro_batch = 2});
  EXPECT_EQ(planner.TotalSteps(1, 0), 5);
  EXPECT_EQ(planner.TotalSteps(3, 0), 15);
  EXPECT_EQ(planner.TotalSteps(0.5, 0), 3);
  EXPECT_EQ(planner.TotalSteps(1.4, 0), 7);
  EXPECT_EQ(planner.TotalSteps(0.001, 0), 1);
  EXPECT_EQ(planner.TotalSteps(3, 4), 4);
  EXPECT_THROW(planner.TotalSteps(0, 0), Error);
}

TEST(BatchPlanner, OptionsOutOfRange_AreRefused) {
  const FakeDataset dataset(Lengths(3));
  EXPECT_THROW(BatchPlanner(dataset, {.rows_per_micro_batch = 0}), Error);
  EXPECT_THROW(BatchPlanner(dataset, {.accumulation = 0}), Error);
  EXPECT_THROW(BatchPlanner(FakeDataset({}), {}), Error);
}

TEST(RankShare, FewRows_SomeRanksHaveNone) {
  const FakeDataset dataset({5, 5});
  const BatchOptions options = {.rows_per_micro_batch = 4, .world_size = 4, .shuffle = false};
  BatchPlanner planner(dataset, options);
  std::size_t rows = 0;
  std::size_t empty = 0;
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    const auto share = RankShare(planner.Step({0, 0}), options, rank);
    empty += share.empty();
    for (const MicroBatch& batch : share) rows += batch.size();
  }
  EXPECT_EQ(rows, 2u);
  EXPECT_GE(empty, 2u);
}

TEST(RankShare, WorkBesideTheTokens_IsCountedAsTokens) {
  const FakeDataset dataset(std::vector<std::int64_t>(30, 10));
  const BatchOptions options = {.rows_per_micro_batch = 30, .world_size = 2, .shuffle = false};
  BatchPlanner planner(dataset, options);
  const std::vector<RankSpeed> speeds = {{.speed = 1, .fixed = 100}, {.speed = 1, .fixed = 0}};
  const auto first = RankShare(planner.Step({0, 0}), options, 0, speeds);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].size(), 10u);  // 100 + 10 x 10 = 20 x 10
}

TEST(BatchPlanner, RanksOtherThanPlanned_KeepTheSteps) {
  const FakeDataset dataset(Lengths(40));
  BatchOptions planned = {.rows_per_micro_batch = 3, .accumulation = 2, .world_size = 4};
  BatchOptions smaller = planned;
  smaller.planned_ranks = 4;
  smaller.world_size = 2;
  BatchPlanner one(dataset, planned);
  BatchPlanner other(dataset, smaller);
  ASSERT_EQ(one.StepsInEpoch(0), other.StepsInEpoch(0));
  EXPECT_EQ(one.Step({0, 1}).micro_batches, other.Step({0, 1}).micro_batches);
}

TEST(MakeTokenBatch, Rows_BackToBackWithShiftedLabels) {
  const FakeDataset dataset({3, 4}, 2);
  const TokenBatch batch = MakeTokenBatch(dataset, {1, 0});
  const auto numbers = [](const at::Tensor& tensor) {
    const auto* data = tensor.const_data_ptr<std::int64_t>();
    return std::vector<std::int64_t>(data, data + tensor.numel());
  };
  EXPECT_THAT(numbers(batch.tokens), ElementsAre(1, 2, 3, 4, 0, 1, 2));
  EXPECT_THAT(numbers(batch.positions), ElementsAre(0, 1, 2, 3, 0, 1, 2));
  EXPECT_THAT(numbers(batch.labels), ElementsAre(-100, 3, 4, -100, -100, 2, -100));
  EXPECT_THAT(batch.row_offsets, ElementsAre(0, 4, 7));
  EXPECT_THAT(batch.rows, ElementsAre(1, 0));
  EXPECT_EQ(batch.trained_tokens, 3);
}

TEST(SequentialBatches, RowsAndTokens_AreBounded) {
  const FakeDataset dataset({10, 10, 30, 50, 5, 5, 5});
  EXPECT_THAT(SequentialBatches(dataset, 2, 40),
              ElementsAre(ElementsAre(0, 1), ElementsAre(2), ElementsAre(3), ElementsAre(4, 5),
                          ElementsAre(6)));
}

}  // namespace
}  // namespace offshoot::trainer
