#include "trainer/speed_estimate.h"

#include <algorithm>
#include <cmath>

namespace offshoot::trainer {

void SpeedEstimate::Add(const std::vector<RankRow>& rows) {
  ranks_.resize(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Rank& rank = ranks_[i];
    rank.fixed_seconds = kMemory * rank.fixed_seconds + rows[i].fixed_seconds;
    rank.weight = kMemory * rank.weight + 1;
    if (rows[i].tokens > 0 && rows[i].compute_seconds > 0) {
      rank.tokens = kMemory * rank.tokens + rows[i].tokens;
      rank.seconds = kMemory * rank.seconds + rows[i].compute_seconds;
    } else {
      rank.tokens *= kHope;
    }
  }
}

std::vector<RankSpeed> SpeedEstimate::Speeds() const {
  double fastest = 0;
  for (const Rank& rank : ranks_) {
    if (rank.seconds > 0) fastest = std::max(fastest, rank.tokens / rank.seconds);
  }
  if (fastest <= 0) return {};
  std::vector<RankSpeed> speeds;
  for (const Rank& rank : ranks_) {
    // Not measured yet: as fast as the fastest, which the next step will tell.
    const double speed = rank.seconds > 0 ? rank.tokens / rank.seconds : fastest;
    const double fixed = rank.weight > 0 ? rank.fixed_seconds / rank.weight * speed : 0;
    speeds.push_back(
        {.speed = std::clamp<std::int64_t>(
             std::llround(speed / fastest * static_cast<double>(kMaxRankSpeed)), 1, kMaxRankSpeed),
         .fixed =
             std::clamp<std::int64_t>(std::llround(std::min(fixed, 1e9)), 0, kMaxRankFixed - 1)});
  }
  return speeds;
}

std::vector<double> SharesOf(const std::vector<RankRow>& rows) {
  double total = 0;
  for (const RankRow& row : rows) total += row.tokens;
  std::vector<double> shares;
  for (const RankRow& row : rows) shares.push_back(total > 0 ? row.tokens / total : 0);
  return shares;
}

}  // namespace offshoot::trainer
