#include <ATen/ops/rsqrt.h>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor InverseRms(const at::Tensor& x, double eps) {
  return at::rsqrt(x.to(at::kFloat).square().mean(-1, /*keepdim=*/true).add_(eps));
}

// d(norm)/dx given the gradient of the output: with n = x * inverse, g = grad * weight,
// dx = inverse * (g - n * mean(g * n)).
at::Tensor NormBackward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& inverse,
                        const at::Tensor& weight) {
  const at::Tensor normed = x.to(at::kFloat).mul(inverse);
  const at::Tensor scaled = grad.to(at::kFloat).mul(weight.to(at::kFloat));
  const at::Tensor mean = scaled.mul(normed).mean(-1, /*keepdim=*/true);
  return scaled.sub(normed.mul(mean)).mul_(inverse);
}

at::Tensor NormForward(const at::Tensor& x, const at::Tensor& inverse, const at::Tensor& weight) {
  return x.to(at::kFloat).mul(inverse).to(x.scalar_type()).mul(weight);
}

class RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double eps) {
    const at::Tensor inverse = InverseRms(x, eps);
    context->save_for_backward({x, weight, inverse});
    return NormForward(x, inverse, weight);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {NormBackward(grads[0], saved[0], saved[2], saved[1]).to(saved[0].scalar_type()),
            at::Tensor(), at::Tensor()};
  }
};

class ResidualRmsNormFunction : public torch::autograd::Function<ResidualRmsNormFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               const at::Tensor& residual, const at::Tensor& weight, double eps) {
    const at::Tensor sum = x.add(residual);
    const at::Tensor inverse = InverseRms(sum, eps);
    context->save_for_backward({sum, weight, inverse});
    return {sum, NormForward(sum, inverse, weight)};
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    at::Tensor grad;
    if (grads[1].defined()) {
      grad = NormBackward(grads[1], saved[0], saved[2], saved[1]);
      if (grads[0].defined()) grad.add_(grads[0]);
      grad = grad.to(saved[0].scalar_type());
    } else {
      grad = grads[0];
    }
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
  return {out[0], out[1]};
}

}  // namespace offshoot::trainer
