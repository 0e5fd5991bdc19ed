#include "trainer/rank_table.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

namespace offshoot::trainer {
namespace {

enum Column : std::int64_t {
  kLossHigh,  // a double as two floats: the sum of a number and zeros is that number
  kLossLow,
  kStop,
  kStopWithoutCheckpoint,
  kCheckpoint,
  kTokens,
  kComputeSeconds,
  kFixedSeconds,
  kBusySeconds,
  kSpeedGiven,  // these three are written by rank 0, in every row
  kSpeed,
  kFixed,
  kColumns,
};

}  // namespace

std::int64_t RankTable::SizeFor(std::int64_t world_size) {
  return world_size > 1 ? world_size * kColumns : 0;
}

void RankTable::Write(at::Tensor tail, std::int64_t rank, const RankRow& row,
                      const std::vector<RankSpeed>& speeds) {
  at::Tensor table = at::zeros({tail.numel()}, at::TensorOptions(at::kFloat));
  float* own = table.mutable_data_ptr<float>() + rank * kColumns;
  const auto high = static_cast<float>(row.loss_sum);
  own[kLossHigh] = high;
  own[kLossLow] = std::isfinite(high) ? static_cast<float>(row.loss_sum - high) : 0.0F;
  own[kStop] = row.stop ? 1.0F : 0.0F;
  own[kStopWithoutCheckpoint] = row.stop_without_checkpoint ? 1.0F : 0.0F;
  own[kCheckpoint] = row.checkpoint ? 1.0F : 0.0F;
  own[kTokens] = static_cast<float>(row.tokens);
  own[kComputeSeconds] = static_cast<float>(row.compute_seconds);
  own[kFixedSeconds] = static_cast<float>(row.fixed_seconds);
  own[kBusySeconds] = static_cast<float>(row.busy_seconds);
  for (std::size_t other = 0; other < speeds.size(); ++other) {
    float* cells = table.mutable_data_ptr<float>() + static_cast<std::int64_t>(other) * kColumns;
    cells[kSpeedGiven] = 1.0F;
    // Whole numbers below 2^24 are exact.
    cells[kSpeed] = static_cast<float>(speeds[other].speed);
    cells[kFixed] = static_cast<float>(speeds[other].fixed);
  }
  tail.copy_(table);
}

std::vector<RankRow> RankTable::Read(const at::Tensor& tail, std::int64_t world_size) {
  const at::Tensor table = tail.cpu().contiguous();
  std::vector<RankRow> rows(static_cast<std::size_t>(world_size));
  const float* cells = table.const_data_ptr<float>();
  for (RankRow& row : rows) {
    row.loss_sum = static_cast<double>(cells[kLossHigh]) + static_cast<double>(cells[kLossLow]);
    row.stop = cells[kStop] > 0;
    row.stop_without_checkpoint = cells[kStopWithoutCheckpoint] > 0;
    row.checkpoint = cells[kCheckpoint] > 0;
    row.tokens = cells[kTokens];
    row.compute_seconds = cells[kComputeSeconds];
    row.fixed_seconds = cells[kFixedSeconds];
    row.busy_seconds = cells[kBusySeconds];
    row.next_speed_given = cells[kSpeedGiven] > 0;
    row.next_speed.speed = std::max<std::int64_t>(1, static_cast<std::int64_t>(cells[kSpeed]));
    row.next_speed.fixed = static_cast<std::int64_t>(cells[kFixed]);
    cells += kColumns;
  }
  return rows;
}

std::vector<double> WaitSeconds(const std::vector<RankRow>& rows) {
  double longest = 0;
  for (const RankRow& row : rows) longest = std::max(longest, row.busy_seconds);
  std::vector<double> waits;
  for (const RankRow& row : rows) waits.push_back(longest - row.busy_seconds);
  return waits;
}

}  // namespace offshoot::trainer
