#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// direction +1 rotates, -1 rotates back (the transpose, which is the gradient).
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  RotaryPairing pairing, double direction) {
  const std::int64_t half = cos.size(1);
  const at::Tensor c = cos.unsqueeze(1);
  const at::Tensor s = sin.unsqueeze(1).mul(direction);
  const at::Tensor turned = x.narrow(-1, 0, 2 * half).to(at::kFloat);
  at::Tensor rotated;
  if (pairing == RotaryPairing::kHalfSplit) {
    const at::Tensor first = turned.narrow(-1, 0, half);
    const at::Tensor second = turned.narrow(-1, half, half);
    rotated = at::cat({first * c - second * s, second * c + first * s}, -1);
  } else {
    const at::Tensor first = turned.slice(-1, 0, c10::nullopt, 2);
    const at::Tensor second = turned.slice(-1, 1, c10::nullopt, 2);
    rotated = at::stack({first * c - second * s, second * c + first * s}, -1).flatten(-2);
  }
  rotated = rotated.to(x.scalar_type());
  if (2 * half == x.size(-1)) return rotated;
  return at::cat({rotated, x.narrow(-1, 2 * half, x.size(-1) - 2 * half)}, -1);
}

class RotaryFunction : public torch::autograd::Function<RotaryFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin, RotaryPairing pairing) {
    context->save_for_backward({cos, sin});
    context->saved_data["pairing"] = static_cast<std::int64_t>(pairing);
    return Rotate(x, cos, sin, pairing, 1.0);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto pairing = static_cast<RotaryPairing>(context->saved_data["pairing"].toInt());
    return {Rotate(grads[0], saved[0], saved[1], pairing, -1.0), at::Tensor(), at::Tensor(),
            at::Tensor()};
  }
};

class SwiGluFunction : public torch::autograd::Function<SwiGluFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate,
                            const at::Tensor& up) {
    context->save_for_backward({gate, up});
    return at::silu(gate).mul_(up);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor gate = saved[0].to(at::kFloat);
    const at::Tensor up = saved[1].to(at::kFloat);
    const at::Tensor grad = grads[0].to(at::kFloat);
    const at::Tensor sigmoid = at::sigmoid(gate);
    const at::Tensor slope = sigmoid * (gate * (1 - sigmoid) + 1);
    const auto dtype = saved[0].scalar_type();
    return {(grad * up * slope).to(dtype), (grad * gate * sigmoid).to(dtype)};
  }
};

}  // namespace

at::Tensor Rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  RotaryPairing pairing) {
  return RotaryFunction::apply(x, cos, sin, pairing);
}

at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  return SwiGluFunction::apply(gate, up);
}

}  // namespace offshoot::trainer
