#include "trainer/memory_estimate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/demo_arch.h"

namespace offshoot::trainer {
namespace {

MemoryShape DemoShape() {
  return {.weight_bytes = 2 * 134'515'008LL,
          .adapter_parameters = 4'884'480,
          .bytes_per_element = 2,
          .tokens = 514,
          .longest_row = 120};
}

TEST(EstimateMemory, EachPart_GrowsWithWhatItIsMadeOf) {
  const MemoryEstimate before = EstimateMemory(DemoModel(), DemoShape());
  MemoryShape shape = DemoShape();
  shape.tokens *= 2;
  EXPECT_EQ(EstimateMemory(DemoModel(), shape).activation_bytes, 2 * before.activation_bytes);
  shape = DemoShape();
  shape.low_rank_columns = 7 * 30 * 16;
  EXPECT_GT(EstimateMemory(DemoModel(), shape).activation_bytes, before.activation_bytes);
  shape = DemoShape();
  shape.weight_bytes *= 2;
  EXPECT_EQ(EstimateMemory(DemoModel(), shape).weight_bytes, 2 * before.weight_bytes);
  EXPECT_EQ(EstimateMemory(DemoModel(), shape).adapter_bytes, before.adapter_bytes);
  shape = DemoShape();
  shape.recomputed = Recomputed::kLayers;
  const std::int64_t least = EstimateMemory(DemoModel(), shape).activation_bytes;
  EXPECT_LT(least, before.activation_bytes / 5);
  shape.recomputed = Recomputed::kFeedForward;
  EXPECT_GT(EstimateMemory(DemoModel(), shape).activation_bytes, least);
  EXPECT_LT(EstimateMemory(DemoModel(), shape).activation_bytes, before.activation_bytes / 2);
}

TEST(EstimateMemory, OnACpu_LogitsTakeNothing) {
  ArchSpec arch = DemoModel();
  MemoryShape shape = DemoShape();
  shape.tokenizer = false;
  const MemoryEstimate before = EstimateMemory(arch, shape);
  arch.vocab_size *= 4;
  EXPECT_EQ(EstimateMemory(arch, shape).Total(), before.Total());
}

TEST(EstimateMemory, WeightInPieces_ItsInputsGradientIsSummedInFloat32) {
  MemoryShape shape = DemoShape();
  const MemoryEstimate before = EstimateMemory(DemoModel(), shape);
  shape.summed_width = 1536;
  EXPECT_EQ(EstimateMemory(DemoModel(), shape).working_bytes,
            before.working_bytes + shape.tokens * 1536 * 4);
}

TEST(MemoryOfThisProcess, IsKnown) {
  EXPECT_GT(PeakMemoryBytes(), 1'000'000);
  EXPECT_GT(AvailableMemoryBytes(), 0);
}

TEST(FormatBytes, UsesTheUnitThatReads) {
  EXPECT_EQ(FormatBytes(270'400'000), "270 MB");
  EXPECT_EQ(FormatBytes(1'520'000'000), "1.5 GB");
}

}  // namespace
}  // namespace offshoot::trainer
