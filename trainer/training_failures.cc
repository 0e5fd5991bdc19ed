// How a training job says what went wrong: the part of TrainingJob that looks for the rows.

#include <algorithm>
#include <cmath>
#include <utility>

#include "trainer/error.h"
#include "trainer/memory_estimate.h"
#include "trainer/memory_plan.h"
#include "trainer/training_job.h"

namespace offshoot::trainer {
namespace {

constexpr std::size_t kMaxRowsInMessage = 20;

}  // namespace

// A rank whose own loss is a number leaves it to the one whose loss is not to name the rows.
void TrainingJob::FailWithBadNumbers(const StepPlan& plan, const std::vector<MicroBatch>& mine,
                                     const StepResult& result, double own_loss) {
  if (std::isfinite(own_loss)) {
    for (std::size_t rank = 0; rank < result.ranks.size(); ++rank) {
      if (!std::isfinite(result.ranks[rank].loss_sum)) {
        Error error(Reason::kRankLost,
                    "rank " + std::to_string(rank) + " has no finite loss in step " +
                        std::to_string(state_.step + 1) + "; it names the rows.");
        error.step = state_.step + 1;
        throw error;
      }
    }
    FailWithNan(plan.micro_batches, result.loss, result.gradient_norm);
  }
  FailWithNan(mine, result.loss, result.gradient_norm);
}

void TrainingJob::FailWithNan(const std::vector<MicroBatch>& micro_batches, double loss,
                              double norm) {
  const std::int64_t step = state_.step + 1;
  // The weights are still those that did it: find the rows by asking each alone.
  std::vector<MicroBatch> singles;
  for (const MicroBatch& rows : micro_batches) {
    for (const std::int64_t row : rows) {
      singles.push_back({row});
    }
  }
  const std::vector<LossSum> sums =
      EvaluateRows(parts_.decoder, adapters_.get(), *parts_.data.train, singles, {});
  std::vector<std::int64_t> culprits;
  for (const MicroBatch& single : singles) {
    if (!std::isfinite(sums[static_cast<std::size_t>(single[0])].loss)) {
      culprits.push_back(single[0]);
    }
  }
  const bool found = !culprits.empty();
  if (!found) {
    for (const MicroBatch& single : singles) {
      culprits.push_back(single[0]);
    }
  }
  std::string names;
  for (std::size_t i = 0; i < std::min(culprits.size(), kMaxRowsInMessage); ++i) {
    names += (i == 0 ? "" : ", ") + parts_.data.train->Describe(culprits[i]);
  }
  if (culprits.size() > kMaxRowsInMessage) {
    names += ", ...";
  }
  const bool loss_is_bad = !std::isfinite(loss);
  Error error(Reason::kNanLoss,
              std::string(loss_is_bad ? "the loss" : "the gradient's norm") + " of step " +
                  std::to_string(step) + " is " +
                  EncodeNumber(loss_is_bad ? loss : norm).get<std::string>() +
                  (found ? "; the rows that make it so: " : "; the step's rows: ") + names +
                  ". Lower learning_rate, or look at these rows.");
  error.step = step;
  for (const std::int64_t row : culprits) {
    error.rows.push_back(parts_.data.train->line(row));
  }
  throw error;
}

void TrainingJob::FailWithOutOfMemory(const MicroBatch& rows, const std::string& what) const {
  const TrainSpec& spec = parts_.spec;
  MemoryShape shape = ShapeWithoutBatch(spec, parts_.decoder, *adapters_);
  for (const std::int64_t row : rows) {
    const auto length = static_cast<std::int64_t>(parts_.data.train->ids(row).size());
    shape.tokens += length;
    shape.longest_row = std::max(shape.longest_row, length);
  }
  const ArchSpec& arch = parts_.decoder.spec();
  const MemoryEstimate asked = EstimateMemory(arch, shape);
  const std::int64_t asked_bytes = asked.activation_bytes + asked.working_bytes;
  const std::int64_t free_bytes = shape.on_cpu ? AvailableMemoryBytes() : 0;
  std::int64_t fitting_rows = static_cast<std::int64_t>(rows.size()) / 2;
  if (free_bytes > 0 && free_bytes < asked_bytes) {
    fitting_rows = std::min(fitting_rows, static_cast<std::int64_t>(rows.size()) * free_bytes /
                                              std::max<std::int64_t>(1, asked_bytes));
  }
  std::string remedy;
  if (fitting_rows >= 1) {
    remedy = "per_device_train_batch_size: " + std::to_string(fitting_rows) +
             " would fit (raise gradient_accumulation_steps to keep the batch)";
  } else {
    switch (spec.recomputed) {
      case Recomputed::kNothing:
        remedy = "set gradient_checkpointing: true or lower sequence_len";
        break;
      case Recomputed::kFeedForward:
        remedy = "set recompute_granularity: full or lower sequence_len";
        break;
      case Recomputed::kLayers:
        remedy = "lower sequence_len or use a device with more memory";
        break;
    }
  }
  Error error(Reason::kOutOfMemory,
              "memory ran out in step " + std::to_string(state_.step + 1) + ": a micro-batch of " +
                  std::to_string(rows.size()) + " rows with " + std::to_string(shape.tokens) +
                  " tokens (the longest row " + std::to_string(shape.longest_row) +
                  ") needs about " + FormatBytes(asked_bytes) + " beside the weights" +
                  (free_bytes > 0 ? ", " + FormatBytes(free_bytes) + " are free" : "") + "; " +
                  remedy + ". (" + what + ")");
  error.step = state_.step + 1;
  for (const std::int64_t row : rows) {
    error.rows.push_back(parts_.data.train->line(row));
  }
  throw error;
}

}  // namespace offshoot::trainer
