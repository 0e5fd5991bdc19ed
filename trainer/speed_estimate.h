// How fast each rank is, from what the last steps took: shares of the global batch follow it.
//
// A rank's step is modelled as fixed seconds plus tokens over its speed; both are averages that
// forget at kMemory a step, so that a rank that slows down (another program on its machine, a
// throttled GPU) has its share lowered within a few steps. Deterministic; not thread-safe.
#pragma once

#include <vector>

#include "trainer/data/batch_plan.h"
#include "trainer/rank_table.h"

namespace offshoot::trainer {

class SpeedEstimate {
 public:
  static constexpr double kMemory = 0.6;  // weight of the past against the newest step
  // A rank that is given nothing is believed to get faster by this each step, until it is tried
  // again.
  static constexpr double kHope = 1.1;

  void Add(const std::vector<RankRow>& rows);
  // Empty until something was measured.
  std::vector<RankSpeed> Speeds() const;

 private:
  struct Rank {
    double tokens = 0;  // decayed sums
    double seconds = 0;
    double fixed_seconds = 0;
    double weight = 0;
  };
  std::vector<Rank> ranks_;
};

// Each rank's part of the work, adding up to 1: what people are shown.
std::vector<double> SharesOf(const std::vector<RankRow>& rows);

}  // namespace offshoot::trainer
