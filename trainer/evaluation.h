// Loss without training: of a whole data set, and row by row. Thread-safe for different adapters.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "trainer/data/batch_plan.h"
#include "trainer/data/dataset.h"
#include "trainer/models/decoder.h"
#include "trainer/parallel/collective.h"

namespace offshoot::trainer {

struct LossSum {
  double loss = 0;  // summed over tokens
  std::int64_t tokens = 0;
  double Mean() const { return tokens == 0 ? 0.0 : loss / static_cast<double>(tokens); }
};

struct EvaluationOptions {
  std::int64_t rows_per_batch = 8;
  std::int64_t max_tokens_per_batch = 2048;
  // Polled between batches; true ends the evaluation early (the sums so far are returned).
  std::function<bool()> interrupted = {};
  // This rank's batches are done: from here it waits for the other ranks.
  std::function<void()> waits = {};
};

// Each row's loss; adapters may be null.
std::vector<LossSum> EvaluateRows(const Decoder& decoder, const Adapters* adapters,
                                  const Dataset& dataset, const std::vector<MicroBatch>& batches,
                                  const EvaluationOptions& options);

// The whole data set's, its batches shared among the ranks; the same value on each. The sum runs in
// row order whatever the ranks are.
LossSum Evaluate(const Decoder& decoder, const Adapters* adapters, const Dataset& dataset,
                 const EvaluationOptions& options, Collective& collective);

// The batch on the decoder's device.
TokenBatch MoveTo(TokenBatch batch, const std::string& device);

}  // namespace offshoot::trainer
