#include "trainer/export/reference.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "trainer/error.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

// The lengths of right-padded rows.
std::vector<std::int64_t> LengthsOf(const at::Tensor& mask) {
  const at::Tensor plain = mask.to(at::kCPU, at::kLong).contiguous();
  const std::int64_t* values = plain.const_data_ptr<std::int64_t>();
  std::vector<std::int64_t> lengths;
  for (std::int64_t row = 0; row < plain.size(0); ++row) {
    std::int64_t length = 0;
    while (length < plain.size(1) && values[row * plain.size(1) + length] == 1) ++length;
    for (std::int64_t i = length; i < plain.size(1); ++i) {
      if (values[row * plain.size(1) + i] != 0) {
        throw Error(Reason::kBadData, "row " + std::to_string(row) +
                                          " of attention_mask is not ones "
                                          "and then zeros; pad the rows on the right.");
      }
    }
    lengths.push_back(length);
  }
  return lengths;
}

void CheckInputs(const at::Tensor& input_ids, const at::Tensor& mask, std::int64_t vocabulary) {
  if (input_ids.dim() != 2 || input_ids.scalar_type() != at::kLong ||
      mask.sizes() != input_ids.sizes()) {
    throw Error(
        Reason::kBadData,
        "input_ids and attention_mask must both be [batch, sequence], and input_ids int64.");
  }
  if (input_ids.numel() == 0) throw Error(Reason::kBadData, "input_ids has no tokens.");
  const std::int64_t smallest = input_ids.min().item<std::int64_t>();
  const std::int64_t largest = input_ids.max().item<std::int64_t>();
  if (smallest < 0 || largest >= vocabulary) {
    throw Error(Reason::kBadData,
                "input_ids has the token " + std::to_string(smallest < 0 ? smallest : largest) +
                    ", and the model knows 0 to " + std::to_string(vocabulary - 1) + ".");
  }
}

}  // namespace

void VisitLogits(const Decoder& decoder, const Adapters* adapters, const at::Tensor& input_ids,
                 const at::Tensor& attention_mask,
                 const std::function<void(std::int64_t row, const at::Tensor& logits)>& visit) {
  const at::NoGradGuard no_grad;
  const FrozenLinear& head = *decoder.head();
  CheckInputs(input_ids, attention_mask, head.out_features());
  const std::vector<std::int64_t> lengths = LengthsOf(attention_mask);
  const c10::Device device(decoder.device());
  for (std::int64_t row = 0; row < input_ids.size(0); ++row) {
    const std::int64_t length = lengths[static_cast<std::size_t>(row)];
    if (length == 0) continue;
    TokenBatch batch;
    batch.tokens = input_ids[row].narrow(0, 0, length).contiguous().to(device);
    batch.positions = at::arange(length, at::TensorOptions().dtype(at::kLong)).to(device);
    batch.row_offsets = {0, length};
    batch.rows = {row};
    ForwardOptions options;
    options.rotary_length = input_ids.size(1);
    const at::Tensor hidden = decoder.Forward(batch, adapters, options);
    visit(row, head.Forward(hidden).to(at::kCPU));
  }
}

at::Tensor ComputeLogits(const Decoder& decoder, const Adapters* adapters,
                         const at::Tensor& input_ids, const at::Tensor& attention_mask) {
  const std::int64_t vocabulary = decoder.head()->out_features();
  CheckInputs(input_ids, attention_mask, vocabulary);
  const at::Tensor all = at::zeros({input_ids.size(0), input_ids.size(1), vocabulary}, at::kFloat);
  VisitLogits(decoder, adapters, input_ids, attention_mask,
              [&](std::int64_t row, const at::Tensor& logits) {
                all[row].narrow(0, 0, logits.size(0)).copy_(logits);
              });
  return all;
}

void WriteReference(const std::string& path, const Decoder& decoder, const Adapters* adapters,
                    at::ScalarType dtype, const std::vector<std::vector<std::int64_t>>& rows,
                    Quantisation quantisation) {
  constexpr std::size_t kMaxRows = 4;
  constexpr std::size_t kMaxTokens = 64;
  std::vector<std::vector<std::int64_t>> kept;
  std::size_t width = 0;
  for (const std::vector<std::int64_t>& row : rows) {
    if (row.empty() || kept.size() == kMaxRows) continue;
    const std::size_t length = std::min(row.size(), kMaxTokens);
    kept.emplace_back(row.begin(), row.begin() + static_cast<std::ptrdiff_t>(length));
    width = std::max(width, length);
  }
  if (kept.empty()) {
    throw Error(Reason::kInternal, path + ": there are no tokens to make reference logits of.");
  }
  const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(kept.size()),
                                           static_cast<std::int64_t>(width)};
  at::Tensor input_ids = at::zeros(shape, at::TensorOptions().dtype(at::kLong));
  at::Tensor mask = at::zeros(shape, at::TensorOptions().dtype(at::kLong));
  for (std::size_t row = 0; row < kept.size(); ++row) {
    std::copy(kept[row].begin(), kept[row].end(), input_ids.data_ptr<std::int64_t>() + row * width);
    std::fill_n(mask.data_ptr<std::int64_t>() + row * width, kept[row].size(), 1);
  }
  const std::int64_t vocabulary = decoder.head()->out_features();
  SafetensorsWriter writer(path,
                           {{"input_ids", at::kLong, shape},
                            {"attention_mask", at::kLong, shape},
                            {"logits", at::kFloat, {shape[0], shape[1], vocabulary}}},
                           {{"dtype", dtype == at::kFloat ? "float32" : "bfloat16"},
                            {"quantisation", NameOf(quantisation)},
                            {"format", "pt"}});
  writer.Write("input_ids", input_ids);
  writer.Write("attention_mask", mask);
  const at::Tensor padded = at::zeros({1, shape[1], vocabulary}, at::kFloat);
  VisitLogits(decoder, adapters, input_ids, mask, [&](std::int64_t, const at::Tensor& logits) {
    padded[0].narrow(0, 0, logits.size(0)).copy_(logits);
    padded[0].slice(0, logits.size(0)).zero_();
    writer.Append("logits", padded);
  });
  writer.Finish();
}

}  // namespace offshoot::trainer
