#include "trainer/data/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

std::vector<RowEntry> RowsOfGroups(const std::vector<std::uint64_t>& groups) {
  std::vector<RowEntry> rows;
  for (const std::uint64_t group : groups) {
    rows.push_back({.group = group});
  }
  return rows;
}

std::vector<RowEntry> DistinctRows(std::uint64_t count) {
  std::vector<std::uint64_t> groups;
  for (std::uint64_t i = 0; i < count; ++i) groups.push_back(i * 31 + 5);
  return RowsOfGroups(groups);
}

TEST(SplitRows, Nothing_AllAreTrained) {
  const RowSplit split = SplitRows(DistinctRows(5), 0, 1);
  EXPECT_EQ(split.train.size(), 5u);
  EXPECT_TRUE(split.held_out.empty());
}

TEST(SplitRows, FractionAndCount_AreMet) {
  EXPECT_EQ(SplitRows(DistinctRows(200), 0.1, 1).held_out.size(), 20u);
  EXPECT_EQ(SplitRows(DistinctRows(200), 50, 1).held_out.size(), 50u);
  EXPECT_EQ(SplitRows(DistinctRows(10), 0.01, 1).held_out.size(), 1u);
  EXPECT_EQ(SplitRows(DistinctRows(10), 1, 1).held_out.size(), 1u);
}

TEST(SplitRows, Parts_ArePartition) {
  const RowSplit split = SplitRows(DistinctRows(100), 0.3, 9);
  std::set<std::int64_t> all(split.train.begin(), split.train.end());
  all.insert(split.held_out.begin(), split.held_out.end());
  EXPECT_EQ(all.size(), 100u);
  EXPECT_TRUE(std::is_sorted(split.train.begin(), split.train.end()));
}

TEST(SplitRows, EqualGroups_StayTogether) {
  std::vector<std::uint64_t> groups;
  for (std::uint64_t i = 0; i < 300; ++i) groups.push_back(i % 37);
  const std::vector<RowEntry> rows = RowsOfGroups(groups);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const RowSplit split = SplitRows(rows, 0.2, seed);
    std::set<std::uint64_t> train, held_out;
    for (const std::int64_t row : split.train) train.insert(groups[static_cast<std::size_t>(row)]);
    for (const std::int64_t row : split.held_out) {
      EXPECT_FALSE(train.contains(groups[static_cast<std::size_t>(row)])) << "seed " << seed;
    }
    EXPECT_GT(split.held_out.size(), 50u);
    EXPECT_LE(split.held_out.size(), 60u);
  }
}

TEST(SplitRows, OrderOfRows_DoesNotMatter) {
  std::vector<RowEntry> rows = DistinctRows(50);
  const auto held_groups = [](const std::vector<RowEntry>& of) {
    std::set<std::uint64_t> groups;
    for (const std::int64_t row : SplitRows(of, 7, 3).held_out) {
      groups.insert(of[static_cast<std::size_t>(row)].group);
    }
    return groups;
  };
  const auto before = held_groups(rows);
  std::reverse(rows.begin(), rows.end());
  EXPECT_EQ(held_groups(rows), before);
}

TEST(SplitRows, Seed_ChangesTheChoice) {
  const std::vector<RowEntry> rows = DistinctRows(100);
  EXPECT_NE(SplitRows(rows, 10, 1).held_out, SplitRows(rows, 10, 2).held_out);
  EXPECT_EQ(SplitRows(rows, 10, 1).held_out, SplitRows(rows, 10, 1).held_out);
}

TEST(SplitRows, OnlyLargeGroups_OneIsTaken) {
  const RowSplit split = SplitRows(RowsOfGroups({1, 1, 1, 2, 2, 2, 2}), 1, 1);
  EXPECT_EQ(split.held_out.size(), 3u);
}

TEST(SplitRows, NothingWouldBeLeft_IsRefused) {
  EXPECT_THROW(SplitRows(DistinctRows(10), 10, 1), Error);
  EXPECT_THROW(SplitRows(DistinctRows(10), 11, 1), Error);
  EXPECT_THROW(SplitRows(RowsOfGroups({4, 4, 4}), 1, 1), Error);
  EXPECT_THROW(SplitRows(DistinctRows(10), -1, 1), Error);
}

}  // namespace
}  // namespace offshoot::trainer
