#include "trainer/data/counter_random.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace offshoot::trainer {
namespace {

using testing::ElementsAre;

TEST(CounterRandom, SplitMix64_KnownAnswers) {
  // The first two outputs of SplitMix64 with seed 0.
  EXPECT_EQ(CounterRandom::Mix(0), 0xE220A8397B1DCDAFull);
  EXPECT_EQ(CounterRandom::Mix(0x9E3779B97F4A7C15ull), 0x6E789E6AA1B965F4ull);
}

// The values were computed from the formulas of the header, in Python. If they change, jobs that
// are resumed train other rows.
TEST(CounterRandom, NumbersAndOrder_AreThoseOfTheHeader) {
  const CounterRandom random(7, 3);
  EXPECT_EQ(random.Number(0), 0xF6F40E3BEECA2FDDull);
  EXPECT_EQ(random.Number(1), 0x0572BDF12BDB1190ull);
  EXPECT_EQ(random.Number(2), 0x91C4E70B9DB85F3Bull);
  std::vector<int> items(10);
  std::iota(items.begin(), items.end(), 0);
  random.Shuffle(&items);
  EXPECT_THAT(items, ElementsAre(2, 9, 8, 6, 3, 1, 0, 5, 7, 4));
}

}  // namespace
}  // namespace offshoot::trainer
