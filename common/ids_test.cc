#include "common/ids.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <type_traits>

namespace offshoot {
namespace {

TEST(SortableId, LaterTime_SortsAfter) {
  EXPECT_LT(MakeSortableId("job-", 1'700'000'000'000), MakeSortableId("job-", 1'700'000'000'001));
  EXPECT_LT(MakeSortableId("job-", 31), MakeSortableId("job-", 32));
}

TEST(SortableId, Form_IsPrefixTenOfTimeEightRandom) {
  EXPECT_THAT(MakeSortableId("job-", 0), testing::MatchesRegex("job-0000000000[0-9a-z]+"));
  EXPECT_EQ(MakeSortableId("job-", 1'700'000'000'000).size(), 4u + 18u);
}

TEST(RandomId, ManyMade_AllDiffer) {
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(MakeRandomId("wrk-"));
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_EQ(seen.begin()->size(), 4u + 16u);
}

TEST(Id, OtherTag_DoesNotConvert) {
  static_assert(!std::is_convertible_v<JobId, WorkerId>);
  static_assert(!std::is_convertible_v<std::string, JobId>);
  EXPECT_EQ(JobId("a"), JobId("a"));
  EXPECT_LT(JobId("a"), JobId("b"));
}

}  // namespace
}  // namespace offshoot
