#include <ATen/core/grad_mode.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <functional>

#include "trainer/data/token_batch.h"
#include "trainer/ops/autograd_support.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Head = std::shared_ptr<const FrozenLinear>;

// Rows whose logits exist at one time: bounds the memory at kChunkRows * vocab float32.
constexpr std::int64_t kChunkRows = 128;

// Calls visit(rows, losses, grads): `rows` int64 of this chunk, `losses` float32 [rows], `grads`
// the gradient of their sum to hidden (undefined unless asked for).
using Visit = std::function<void(const at::Tensor&, const at::Tensor&, const at::Tensor&)>;

void ForEachChunk(const at::Tensor& hidden, const Head& head, const at::Tensor& labels,
                  bool with_gradient, const Visit& visit) {
  const at::Tensor trained = at::nonzero(labels.ne(kIgnoredLabel)).flatten();
  for (std::int64_t begin = 0; begin < trained.size(0); begin += kChunkRows) {
    const std::int64_t count = std::min(kChunkRows, trained.size(0) - begin);
    const at::Tensor rows = trained.narrow(0, begin, count);
    const at::Tensor targets = at::index_select(labels, 0, rows).unsqueeze(1);
    const at::Tensor logits = head->Forward(at::index_select(hidden, 0, rows)).to(at::kFloat);
    const at::Tensor sums = at::logsumexp(logits, 1, /*keepdim=*/true);
    const at::Tensor losses = sums.sub(logits.gather(1, targets)).squeeze(1);
    at::Tensor grads;
    if (with_gradient) {
      at::Tensor slope = logits.sub(sums).exp_();
      slope.scatter_add_(1, targets, at::zeros_like(targets, at::kFloat).sub_(1));
      grads = head->BackwardInput(slope.to(hidden.scalar_type()));
    }
    visit(rows, losses, grads);
  }
}

class CrossEntropySumFunction : public torch::autograd::Function<CrossEntropySumFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const Head& head,
                            const at::Tensor& labels, bool with_gradient) {
    at::Tensor sum = at::zeros({}, hidden.options().dtype(at::kFloat));
    at::Tensor grad = with_gradient ? at::zeros_like(hidden) : at::Tensor();
    ForEachChunk(hidden, head, labels, with_gradient,
                 [&](const at::Tensor& rows, const at::Tensor& losses, const at::Tensor& grads) {
                   sum.add_(losses.sum());
                   if (with_gradient) grad.index_copy_(0, rows, grads);
                 });
    if (with_gradient) context->saved_data["grad"] = grad;
    return sum;
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
  at::Tensor all = at::zeros(labels.sizes(), hidden.options().dtype(at::kFloat));
  ForEachChunk(hidden, head, labels, /*with_gradient=*/false,
               [&](const at::Tensor& rows, const at::Tensor& losses, const at::Tensor&) {
                 all.index_copy_(0, rows, losses);
               });
  return all;
}

}  // namespace offshoot::trainer
