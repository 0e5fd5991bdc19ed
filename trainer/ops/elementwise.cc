#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/stack.h>
#include <c10/util/Exception.h>

#include <algorithm>

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

at::Tensor RotateElsewhere(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                           RotaryPairing pairing, bool backward) {
  const std::int64_t half = cos.size(1);
  const at::Tensor c = cos.unsqueeze(1);
  const at::Tensor s = sin.unsqueeze(1).mul(backward ? -1 : 1);
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

// backward: rotates back (the transpose, which is the gradient).
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  RotaryPairing pairing, bool backward) {
  TORCH_CHECK(x.dim() == 3 && cos.size(0) == x.size(0) && 2 * cos.size(1) <= x.size(2) &&
                  cos.sizes() == sin.sizes(),
              "rotary tables have one row per token and at most half a head's width");
  if (!cpu::Supported(x)) return RotateElsewhere(x, cos, sin, pairing, backward);
  const bool heads_contiguous = x.stride(2) == 1 && x.stride(1) == x.size(2);
  const at::Tensor input = heads_contiguous ? x : x.contiguous();
  const at::Tensor out = at::empty(x.sizes(), x.options());
  const at::Tensor c = cos.contiguous(), s = sin.contiguous();
  const cpu::RotaryTurn turn = {cpu::ElementOf(x.scalar_type()),
                                x.size(0),
                                x.size(1),
                                x.size(2),
                                cos.size(1),
                                pairing == RotaryPairing::kInterleaved,
                                backward,
                                Bytes(input),
                                input.stride(0) * input.element_size(),
                                MutableBytes(out),
                                c.const_data_ptr<float>(),
                                s.const_data_ptr<float>()};
  cpu::ParallelTasks(
      x.size(0), 0,
      [&](std::int64_t begin, std::int64_t end, void*) { cpu::Kernels().rotary(turn, begin, end); },
      cpu::kShortRows);
  return out;
}

class RotaryFunction : public torch::autograd::Function<RotaryFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin, RotaryPairing pairing) {
    context->save_for_backward({cos, sin});
    context->saved_data["pairing"] = static_cast<std::int64_t>(pairing);
    return Rotate(x, cos, sin, pairing, /*backward=*/false);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto pairing = static_cast<RotaryPairing>(context->saved_data["pairing"].toInt());
    return {Rotate(grads[0], saved[0], saved[1], pairing, /*backward=*/true), at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

// Elements of one task: 16 KiB of bfloat16, so that a task is worth its start.
constexpr std::int64_t kGrainValues = 8192;

// Calls run(begin, end) over elements.
template <typename F>
void ForElements(std::int64_t count, const F& run) {
  cpu::ParallelTasks((count + kGrainValues - 1) / kGrainValues, 0,
                     [&](std::int64_t begin, std::int64_t end, void*) {
                       run(begin * kGrainValues, std::min(count, end * kGrainValues));
                     },
                     {.least = 4});
}

// silu(gate) * up; both contiguous.
at::Tensor GatedProduct(const at::Tensor& gate, const at::Tensor& up) {
  if (!cpu::Supported(gate)) return at::silu(gate).mul_(up);
  const at::Tensor out = at::empty_like(gate);
  ForElements(gate.numel(), [&](std::int64_t begin, std::int64_t end) {
    cpu::Kernels().swiglu_forward(cpu::ElementOf(gate.scalar_type()), Bytes(gate), Bytes(up),
                                  MutableBytes(out), begin, end);
  });
  return out;
}

class SwiGluFunction : public torch::autograd::Function<SwiGluFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_in,
                            const at::Tensor& up_in) {
    const at::Tensor gate = gate_in.contiguous(), up = up_in.contiguous();
    context->save_for_backward({gate, up});
    return GatedProduct(gate, up);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1];
    const at::Tensor grad = grads[0].contiguous();
    if (!cpu::Supported(gate)) return BackwardElsewhere(gate, up, grad);
    const at::Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
    ForElements(gate.numel(), [&](std::int64_t begin, std::int64_t end) {
      cpu::Kernels().swiglu_backward(cpu::ElementOf(gate.scalar_type()), Bytes(grad), Bytes(gate),
                                     Bytes(up), MutableBytes(grad_gate), MutableBytes(grad_up),
                                     begin, end);
    });
    return {grad_gate, grad_up};
  }

 private:
  static variable_list BackwardElsewhere(const at::Tensor& gate_in, const at::Tensor& up_in,
                                         const at::Tensor& grad_in) {
    const at::Tensor gate = gate_in.to(at::kFloat), up = up_in.to(at::kFloat);
    const at::Tensor grad = grad_in.to(at::kFloat);
    const at::Tensor sigmoid = at::sigmoid(gate);
    const at::Tensor slope = sigmoid * (gate * (1 - sigmoid) + 1);
    const auto dtype = gate_in.scalar_type();
    return {(grad * up * slope).to(dtype), (grad * gate * sigmoid).to(dtype)};
  }
};

}  // namespace

at::Tensor Rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                  RotaryPairing pairing) {
  return RotaryFunction::apply(x, cos, sin, pairing);
}

at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  TORCH_CHECK(gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type(),
              "gate and up have one shape and type");
  return SwiGluFunction::apply(gate, up);
}

at::Tensor MakeAgain(const Remake& remake) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor>& from = remake.sources;
  if (remake.kind == Remake::Kind::kNorm) {
    return NormAgain(from.at(0).contiguous(), from.at(1), from.at(2));
  }
  TORCH_CHECK(remake.kind == Remake::Kind::kSwiGlu, "nothing says how to make this again");
  return GatedProduct(from.at(0).contiguous(), from.at(1).contiguous());
}

}  // namespace offshoot::trainer
