// What the ranks tell each other with every step. Each rank writes its own row of a table and
// leaves the others zero; the table lies behind the gradients in the bucket that is summed over the
// ranks anyway, so after the step's one all-reduce every rank has all rows, bit for bit.
//
// Values, no state. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trainer/data/batch_plan.h"

namespace offshoot::trainer {

struct RankRow {
  double loss_sum = 0;  // over the rank's trained tokens of this step; NaN is passed on
  bool stop = false;    // was asked to stop
  bool stop_without_checkpoint = false;
  bool checkpoint = false;     // was asked for a checkpoint
  double tokens = 0;           // input tokens the rank computed in this step
  double compute_seconds = 0;  // on them
  double fixed_seconds = 0;    // on what a step takes beside them, whatever its rows
  double busy_seconds = 0;  // from the end of the last all-reduce until it was ready for this one
  RankSpeed next_speed;     // rank 0 decides: what the next step's rows are dealt out by
  bool next_speed_given = false;
};

class RankTable {
 public:
  // Floats that a bucket needs behind its gradients.
  static std::int64_t SizeFor(std::int64_t world_size);

  // Before the all-reduce: all zero but this rank's row. speeds: of all ranks, from rank 0 only.
  static void Write(at::Tensor tail, std::int64_t rank, const RankRow& row,
                    const std::vector<RankSpeed>& speeds);
  // After it: one row a rank.
  static std::vector<RankRow> Read(const at::Tensor& tail, std::int64_t world_size);
};

// How long each rank waited for the slowest, in seconds.
std::vector<double> WaitSeconds(const std::vector<RankRow>& rows);

}  // namespace offshoot::trainer
