#include "trainer/evaluation.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include "trainer/ops/ops.h"
#include "trainer/ops/to_device.h"

namespace offshoot::trainer {

TokenBatch MoveTo(TokenBatch batch, const std::string& device) {
  batch.tokens = ToDevice(batch.tokens, at::Device(device));
  batch.positions = ToDevice(batch.positions, at::Device(device));
  return batch;
}

std::vector<LossSum> EvaluateRows(const Decoder& decoder, const Adapters* adapters,
                                  const Dataset& dataset, const std::vector<MicroBatch>& batches,
                                  const EvaluationOptions& options) {
  const at::NoGradGuard no_grad;
  std::vector<LossSum> sums(static_cast<std::size_t>(dataset.size()));
  for (const MicroBatch& rows : batches) {
    if (options.interrupted && options.interrupted()) {
      break;
    }
    const TokenBatch batch = MoveTo(MakeTokenBatch(dataset, rows), decoder.device());
    const at::Tensor hidden = decoder.Forward(batch, adapters, ForwardOptions{});
    const at::Tensor losses = TokenLosses(hidden, decoder.head(), batch.labels).cpu();
    const float* data = losses.const_data_ptr<float>();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      LossSum& sum = sums[static_cast<std::size_t>(rows[i])];
      for (std::int64_t t = batch.row_offsets[i]; t < batch.row_offsets[i + 1]; ++t) {
        sum.loss += data[t];
      }
      sum.tokens = dataset.trained_tokens(rows[i]);
    }
  }
  return sums;
}

LossSum Evaluate(const Decoder& decoder, const Adapters* adapters, const Dataset& dataset,
                 const EvaluationOptions& options, Collective& collective) {
  std::vector<MicroBatch> mine;
  const std::vector<MicroBatch> all =
      SequentialBatches(dataset, options.rows_per_batch, options.max_tokens_per_batch);
  for (std::size_t i = static_cast<std::size_t>(collective.rank()); i < all.size();
       i += static_cast<std::size_t>(collective.world_size())) {
    mine.push_back(all[i]);
  }
  const std::vector<LossSum> rows = EvaluateRows(decoder, adapters, dataset, mine, options);
  // Row by row, so that the order of the sum does not depend on who evaluated what.
  at::Tensor table = at::zeros({dataset.size(), 2}, at::TensorOptions(at::kDouble));
  double* values = table.mutable_data_ptr<double>();
  for (std::size_t row = 0; row < rows.size(); ++row) {
    values[2 * row] = rows[row].loss;
    values[2 * row + 1] = static_cast<double>(rows[row].tokens);
  }
  if (options.waits) options.waits();
  collective.AllReduceSum(table);
  LossSum total;
  for (std::int64_t row = 0; row < dataset.size(); ++row) {
    total.loss += values[2 * row];
    total.tokens += static_cast<std::int64_t>(values[2 * row + 1]);
  }
  return total;
}

}  // namespace offshoot::trainer
