#include <ATen/ops/_fused_rms_norm.h>
#include <ATen/ops/_fused_rms_norm_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <c10/util/Exception.h>

#include <tuple>
#include <utility>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/cpu/kernels.h"
#include "trainer/ops/cpu/parallel.h"
#include "trainer/ops/ops.h"
#include "trainer/ops/products.h"
#include "trainer/ops/remake.h"
#include "trainer/ops/tensor_bytes.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Normed {
  at::Tensor sum;  // x + residual; undefined without a residual
  at::Tensor out;
  at::Tensor inverse;  // float32, one per row, shape of x without its last dimension
};

Normed NormElsewhere(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                     double eps) {
  Normed normed;
  if (residual.defined()) normed.sum = x.add(residual);
  const at::Tensor& input = residual.defined() ? normed.sum : x;
  std::tie(normed.out, normed.inverse) = at::_fused_rms_norm(input, weight.sizes(), weight, eps);
  normed.inverse = normed.inverse.squeeze(-1);
  return normed;
}

// x and residual contiguous.
Normed Norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, double eps) {
  TORCH_CHECK(
      weight.dim() == 1 && weight.size(0) == x.size(-1) && weight.scalar_type() == x.scalar_type(),
      "a norm's weight has the width and type of its input");
  if (!cpu::Supported(x)) return NormElsewhere(x, residual, weight, eps);
  Normed normed;
  if (residual.defined()) normed.sum = at::empty_like(x);
  normed.out = at::empty_like(x);
  normed.inverse = at::empty(x.sizes().slice(0, x.dim() - 1), x.options().dtype(at::kFloat));
  const std::int64_t width = x.size(-1), rows = x.numel() / width;
  const at::Tensor flat_weight = weight.contiguous();
  const cpu::NormForward call = {cpu::ElementOf(x.scalar_type()),
                                 rows,
                                 width,
                                 static_cast<float>(eps),
                                 Bytes(x),
                                 Bytes(residual),
                                 MutableBytes(normed.sum),
                                 Bytes(flat_weight),
                                 MutableBytes(normed.out),
                                 normed.inverse.mutable_data_ptr<float>()};
  cpu::ParallelTasks(
      rows, 0,
      [&](std::int64_t begin, std::int64_t end, void*) {
        cpu::Kernels().norm_forward(call, begin, end);
      },
      cpu::kShortRows);
  return normed;
}

// The gradient to the normed input x, plus grad_sum if that is defined.
at::Tensor NormGradient(const at::Tensor& grad, const at::Tensor& grad_sum, const at::Tensor& x,
                        const at::Tensor& inverse, const at::Tensor& weight) {
  if (!cpu::Supported(x)) {
    at::Tensor result = std::get<0>(at::_fused_rms_norm_backward(
        grad.contiguous(), x, weight.sizes(), inverse.unsqueeze(-1), weight, {true, false}));
    return grad_sum.defined() ? result.add_(grad_sum) : result;
  }
  const at::Tensor result = at::empty_like(x);
  const std::int64_t width = x.size(-1), rows = x.numel() / width;
  const at::Tensor flat_grad = grad.contiguous(), flat_weight = weight.contiguous();
  const at::Tensor flat_sum = grad_sum.defined() ? grad_sum.contiguous() : grad_sum;
  const cpu::NormBackward call = {cpu::ElementOf(x.scalar_type()),
                                  rows,
                                  width,
                                  Bytes(flat_grad),
                                  Bytes(flat_sum),
                                  Bytes(x),
                                  Bytes(flat_weight),
                                  inverse.const_data_ptr<float>(),
                                  MutableBytes(result)};
  cpu::ParallelTasks(
      rows, 0,
      [&](std::int64_t begin, std::int64_t end, void*) {
        cpu::Kernels().norm_backward(call, begin, end);
      },
      cpu::kShortRows);
  return result;
}

class RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, double eps) {
    const at::Tensor x = input.contiguous();
    Normed normed = Norm(x, {}, weight, eps);
    context->save_for_backward({x, weight, normed.inverse});
    return normed.out;
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {NormGradient(grads[0], {}, saved[0], saved[2], saved[1]), at::Tensor(), at::Tensor()};
  }
};

class ResidualRmsNormFunction : public torch::autograd::Function<ResidualRmsNormFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const at::Tensor& residual, const at::Tensor& weight, double eps) {
    context->set_materialize_grads(false);
    Normed normed = Norm(x.contiguous(), residual.contiguous(), weight, eps);
    context->save_for_backward({normed.sum, weight, normed.inverse});
    context->mark_non_differentiable({normed.inverse});
    return {normed.sum, normed.out, normed.inverse};
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor grad = grads[1].defined()
                                ? NormGradient(grads[1], grads[0], saved[0], saved[2], saved[1])
                                : grads[0];
    return {grad, grad, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return RmsNormFunction::apply(x, weight, eps);
}

ResidualNorm ResidualRmsNorm(const at::Tensor& x, const at::Tensor& residual,
                             const at::Tensor& weight, double eps) {
  const variable_list out = ResidualRmsNormFunction::apply(x, residual, weight, eps);
  return {out[0], out[1], {Remake::Kind::kNorm, {out[0], out[2], weight}}};
}

at::Tensor NormAgain(const at::Tensor& x, const at::Tensor& inverse, const at::Tensor& weight) {
  if (!cpu::Supported(x)) {
    at::Tensor out = at::empty_like(x);  // in the float32 of inverse, rounded once
    return at::mul_out(out, x.mul(inverse.unsqueeze(-1)), weight);
  }
  const at::Tensor out = at::empty_like(x);
  const at::Tensor flat_weight = weight.contiguous();
  const std::int64_t width = x.size(-1), rows = x.numel() / width;
  const cpu::NormAgain call = {cpu::ElementOf(x.scalar_type()),
                               width,
                               Bytes(x),
                               Bytes(flat_weight),
                               inverse.const_data_ptr<float>(),
                               MutableBytes(out)};
  cpu::ParallelTasks(
      rows, 0,
      [&](std::int64_t begin, std::int64_t end, void*) {
        cpu::Kernels().norm_again(call, begin, end);
      },
      cpu::kShortRows);
  return out;
}

}  // namespace offshoot::trainer
