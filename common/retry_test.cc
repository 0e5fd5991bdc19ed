#include "common/retry.h"

#include <gtest/gtest.h>

namespace offshoot {
namespace {

TEST(Backoff, Waits_DoubleUpToTheBound) {
  Backoff backoff({absl::Milliseconds(100), absl::Milliseconds(350), 2.0, 0.5});
  EXPECT_EQ(backoff.Next(0.0), absl::Milliseconds(100));
  EXPECT_EQ(backoff.Next(0.0), absl::Milliseconds(200));
  EXPECT_EQ(backoff.Next(0.0), absl::Milliseconds(350));
  EXPECT_EQ(backoff.Next(0.0), absl::Milliseconds(350));
  backoff.Reset();
  EXPECT_EQ(backoff.Next(0.0), absl::Milliseconds(100));
}

TEST(Backoff, Jitter_ShortensByAtMostItsPart) {
  Backoff backoff({absl::Milliseconds(100), absl::Seconds(1), 1.0, 0.5});
  for (int i = 0; i < 1000; ++i) {
    const absl::Duration wait = backoff.Next();
    EXPECT_GT(wait, absl::Milliseconds(50) - absl::Nanoseconds(1));
    EXPECT_LE(wait, absl::Milliseconds(100));
  }
}

}  // namespace
}  // namespace offshoot
