// Which rows are trained in which optimizer step, in which micro-batch: a pure function of
// (dataset, options, epoch), so that the data cursor of a checkpoint is two integers.
//
//   epoch order -> (windows sorted by length | blocks packed by best fit) -> micro-batches
//               -> steps of gradient_accumulation_steps micro-batches x ranks -> a rank's share
//
// The order is Fisher-Yates over a counter-based generator (counter_random.h), which is written
// down there and is the same on every machine.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/data/dataset.h"
#include "trainer/data/token_batch.h"

namespace offshoot::trainer {

struct BatchOptions {
  std::int64_t rows_per_micro_batch = 1;  // per_device_train_batch_size; with packing: blocks
  std::int64_t accumulation = 1;          // gradient_accumulation_steps, micro-batches of a rank
  std::int64_t world_size = 1;            // ranks that share a step
  std::int64_t planned_ranks = 0;         // ranks whose micro-batches make a step; 0: world_size
  std::uint64_t seed = 0;
  bool shuffle = true;
  bool group_by_length = false;  // sort by length inside windows of 50 steps, then mix the steps
  bool sample_packing = false;   // micro-batch = blocks of at most sequence_len tokens
  std::int64_t sequence_len = 2048;
};

// Reads per_device_train_batch_size, gradient_accumulation_steps, seed, shuffle, group_by_length,
// sample_packing, sequence_len and resources.ranks of a resolved spec. The last fixes the global
// batch, so that a gang of another size trains the same steps; without it world_size does.
BatchOptions BatchOptionsFromSpec(const nlohmann::json& spec, std::int64_t world_size);

// Where training stands: the next step to be trained. Stored in checkpoints.
struct DataCursor {
  std::int64_t epoch = 0;          // from 0
  std::int64_t step_in_epoch = 0;  // from 0
  bool operator==(const DataCursor&) const = default;
};

// Rows (indices into the dataset) of one forward pass.
using MicroBatch = std::vector<std::int64_t>;

// One optimizer step: the micro-batches of all ranks, before they are shared out.
struct StepPlan {
  std::vector<MicroBatch> micro_batches;
  std::int64_t trained_tokens = 0;       // over all ranks; divides the summed loss
  std::vector<std::int64_t> row_tokens;  // length of each row, in the order of the micro-batches
};

// Deterministic; not thread-safe (keeps the plan of the last epoch asked for).
class BatchPlanner {
 public:
  // The dataset must outlive the planner. Throws Error(kBadSpec) for an option out of range.
  BatchPlanner(const Dataset& dataset, const BatchOptions& options);

  // Steps of an epoch; the last one may be smaller (a partial accumulation is kept). Without
  // packing it is the same for every epoch.
  std::int64_t StepsInEpoch(std::int64_t epoch);
  // The plan of the step at the cursor; cursor.step_in_epoch < StepsInEpoch(cursor.epoch).
  const StepPlan& Step(const DataCursor& cursor);
  // The cursor after this step.
  DataCursor Next(const DataCursor& cursor);
  // Optimizer steps of the whole job; max_steps > 0 wins over num_train_epochs, which may be
  // fractional (rounded up to a whole step).
  std::int64_t TotalSteps(double num_train_epochs, std::int64_t max_steps);

 private:
  void PlanEpoch(std::int64_t epoch);

  const Dataset& dataset_;
  const BatchOptions options_;
  std::int64_t planned_epoch_ = -1;
  std::vector<StepPlan> steps_;
};

// How fast a rank is, in whole numbers: every rank cuts the step by itself, and rounding must not
// make two of them disagree. A rank that gets n tokens is expected to take (fixed + n) / speed.
struct RankSpeed {
  std::int64_t speed = 1;  // tokens in a unit of time, 1 to kMaxRankSpeed
  std::int64_t fixed = 0;  // what it does beside, in tokens, 0 to kMaxRankFixed
  bool operator==(const RankSpeed&) const = default;
};
inline constexpr std::int64_t kMaxRankSpeed = 1'000'000;
inline constexpr std::int64_t kMaxRankFixed = 1 << 24;

// The micro-batches of one rank. speeds: one per rank (empty: all alike). The step's rows are dealt
// out, longest first, each to the rank that would be done with it soonest; a rank's rows keep the
// step's order and are cut into micro-batches as the options bound them. The parts of all ranks
// together are exactly the step; a rank's part may be empty.
std::vector<MicroBatch> RankShare(const StepPlan& step, const BatchOptions& options,
                                  std::int64_t rank, const std::vector<RankSpeed>& speeds = {});

// Rows back to back, labels shifted by one inside each row (the last token of a row predicts
// nothing).
TokenBatch MakeTokenBatch(const Dataset& dataset, const MicroBatch& rows);

// Consecutive rows in batches of at most rows_per_batch rows and max_tokens tokens (a longer row
// stands alone): for evaluation and scoring.
std::vector<MicroBatch> SequentialBatches(const Dataset& dataset, std::int64_t rows_per_batch,
                                          std::int64_t max_tokens);

}  // namespace offshoot::trainer
