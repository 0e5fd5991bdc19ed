#include <ATen/core/grad_mode.h>
#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "trainer/data/token_batch.h"
#include "trainer/ops/autograd_support.h"
#include "trainer/ops/cpu/kernels.h"
#include "trainer/ops/cpu/parallel.h"
#include "trainer/ops/ops.h"
#include "trainer/ops/products.h"
#include "trainer/ops/tensor_bytes.h"
#include "trainer/ops/to_device.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Head = std::shared_ptr<const FrozenLinear>;

struct Losses {
  at::Tensor losses;  // float32 [rows]
  at::Tensor grad;    // float32 [rows, H], undefined unless asked for
};

// LibTorch's operations in chunks of rows: bounds the memory at kChunkRows * vocab float32.
constexpr std::int64_t kChunkRows = 512;

Losses LossesElsewhere(const at::Tensor& hidden, const FrozenLinear& head, const at::Tensor& labels,
                       bool with_gradient) {
  Losses result;
  result.losses = at::empty({hidden.size(0)}, hidden.options().dtype(at::kFloat));
  if (with_gradient) result.grad = at::empty(hidden.sizes(), hidden.options().dtype(at::kFloat));
  for (std::int64_t begin = 0; begin < hidden.size(0); begin += kChunkRows) {
    const std::int64_t count = std::min(kChunkRows, hidden.size(0) - begin);
    const at::Tensor targets =
        ToDevice(labels.narrow(0, begin, count), hidden.device()).unsqueeze(1);
    const at::Tensor logits = head.Forward(hidden.narrow(0, begin, count)).to(at::kFloat);
    const at::Tensor logs = at::_log_softmax(logits, 1, /*half_to_float=*/false);
    const at::Tensor chosen = logs.gather(1, targets);
    result.losses.narrow(0, begin, count).copy_(chosen.neg().squeeze(1));
    if (with_gradient) {
      at::Tensor slope = at::empty(logs.sizes(), hidden.options());
      at::exp_out(slope, logs);
      slope.scatter_(1, targets, at::expm1(chosen).to(slope.scalar_type()));
      result.grad.narrow(0, begin, count).copy_(head.BackwardInput(slope));
    }
  }
  return result;
}

// hidden [rows, H] contiguous; labels on the CPU, none ignored.
Losses LossesOf(const at::Tensor& hidden_in, const FrozenLinear& head, const at::Tensor& labels,
                bool with_gradient) {
  const std::int64_t vocab = head.out_features();
  if (labels.numel() > 0) {
    TORCH_CHECK(labels.min().item<std::int64_t>() >= 0 && labels.max().item<std::int64_t>() < vocab,
                "a label is outside the vocabulary of ", vocab, " tokens");
  }
  if (!cpu::Supported(hidden_in)) {
    return LossesElsewhere(hidden_in, head, labels, with_gradient);
  }
  const cpu::KernelTable& kernels = cpu::Kernels();
  const at::Tensor bias = head.Bias();
  const bool pairs = hidden_in.scalar_type() == at::kBFloat16 && kernels.bf16_products &&
                     head.dtype() == at::kBFloat16 && hidden_in.size(1) % 2 == 0;
  const at::Tensor hidden = pairs ? hidden_in : hidden_in.to(at::kFloat);
  const auto float_options = hidden.options().dtype(at::kFloat);
  Losses result;
  result.losses = at::empty({hidden.size(0)}, float_options);
  const at::Tensor kept = at::empty({2, hidden.size(0)}, float_options);
  at::Tensor label_rows;
  if (with_gradient) {
    result.grad = at::empty(hidden.sizes(), float_options);
    label_rows = at::empty(hidden.sizes(), hidden.options().dtype(head.dtype()));
  }
  cpu::TokenLoss call = {};
  call.type = cpu::ElementOf(hidden.scalar_type());
  call.w_type = cpu::ElementOf(head.dtype());
  call.rows = hidden.size(0);
  call.width = hidden.size(1);
  call.vocab = vocab;
  call.hidden = static_cast<const char*>(hidden.const_data_ptr());
  call.bias = bias.defined() ? static_cast<const char*>(bias.const_data_ptr()) : nullptr;
  call.labels = labels.const_data_ptr<std::int64_t>();
  call.losses = result.losses.mutable_data_ptr<float>();
  call.grad = with_gradient ? result.grad.mutable_data_ptr<float>() : nullptr;
  call.references = kept.mutable_data_ptr<float>();
  call.sums = call.references + call.rows;
  call.label_rows = MutableBytes(label_rows);
  const std::int64_t columns = kernels.token_loss_columns(call), most = head.rows_at_once();
  const std::int64_t step = most >= vocab ? vocab : std::max(columns, most / columns * columns);
  for (call.first = 0; call.first < vocab; call.first += step) {
    call.count = std::min(step, vocab - call.first);
    const at::Tensor weight = head.Rows(call.first, call.count);
    call.weight = Bytes(weight);
    constexpr std::int64_t kLeastRows = 128;  // each range packs the weights
    cpu::ParallelTasks(call.rows, kernels.token_loss_scratch(call),
                       [&](std::int64_t begin, std::int64_t end, void* scratch) {
                         kernels.token_loss(call, begin, end, scratch);
                       },
                       {.least = kLeastRows});
  }
  return result;
}

// The rows with a label, chosen on the CPU, where labels are: a GPU need not be waited for.
struct Trained {
  at::Tensor rows;     // on hidden's device; undefined if that is all of them
  at::Tensor hidden;   // theirs
  at::Tensor targets;  // on the CPU
};

Trained TrainedRows(const at::Tensor& hidden, const at::Tensor& labels) {
  const at::Tensor rows = at::nonzero(labels.ne(kIgnoredLabel)).flatten();
  if (rows.size(0) == labels.size(0)) return {{}, hidden.contiguous(), labels.contiguous()};
  const at::Tensor there = ToDevice(rows, hidden.device());
  return {there, at::index_select(hidden, 0, there), at::index_select(labels, 0, rows)};
}

class CrossEntropySumFunction : public torch::autograd::Function<CrossEntropySumFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const Head& head,
                            const at::Tensor& labels, bool with_gradient) {
    const Trained trained = TrainedRows(hidden, labels);
    const Losses result = LossesOf(trained.hidden, *head, trained.targets, with_gradient);
    if (with_gradient) {
      at::Tensor grad = result.grad.to(hidden.scalar_type());
      if (trained.rows.defined()) {
        grad = at::zeros_like(hidden).index_copy_(0, trained.rows, grad);
      }
      context->saved_data["grad"] = grad;
    }
    return result.losses.sum();
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const at::Tensor grad = context->saved_data.at("grad").toTensor();
    return {grad.mul(grads[0]).to(grad.scalar_type()), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor CrossEntropySum(const at::Tensor& hidden,
                           const std::shared_ptr<const FrozenLinear>& head,
                           const at::Tensor& labels) {
  const bool with_gradient = at::GradMode::is_enabled() && hidden.requires_grad();
  return CrossEntropySumFunction::apply(hidden, head, labels, with_gradient);
}

at::Tensor TokenLosses(const at::Tensor& hidden, const std::shared_ptr<const FrozenLinear>& head,
                       const at::Tensor& labels) {
  const at::NoGradGuard no_grad;
  const Trained trained = TrainedRows(hidden, labels);
  const at::Tensor losses = LossesOf(trained.hidden, *head, trained.targets, false).losses;
  if (!trained.rows.defined()) return losses;
  at::Tensor all = at::zeros(labels.sizes(), hidden.options().dtype(at::kFloat));
  return all.index_copy_(0, trained.rows, losses);
}

}  // namespace offshoot::trainer
