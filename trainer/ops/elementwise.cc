#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
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
  const std::int64_t half = cos.size(1), turned = 2 * half;
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1),
                   out = at::empty(x.sizes(), x.options());
  const auto member = [&](const at::Tensor& t, std::int64_t which) {
    return pairing == RotaryPairing::kHalfSplit
               ? t.narrow(-1, which * half, half)
               : t.narrow(-1, 0, turned).slice(-1, which, c10::nullopt, 2);
  };
  const at::Tensor first = member(x, 0), second = member(x, 1);
  at::Tensor out_first = member(out, 0), out_second = member(out, 1);
  const double sign = backward ? -1 : 1;
  // In the tables' float32, rounded once: as it is stored.
  at::addcmul_out(out_first, first.mul(c), second, s, -sign);
  at::addcmul_out(out_second, second.mul(c), first, s, sign);
  const std::int64_t rest = x.size(-1) - turned;
  if (rest > 0) out.narrow(-1, turned, rest).copy_(x.narrow(-1, turned, rest));
  return out;
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
    if (!cpu::Supported(gate)) {
      return {at::silu_backward(grad.mul(up), gate), at::silu(gate).mul_(grad)};
    }
    const at::Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
    ForElements(gate.numel(), [&](std::int64_t begin, std::int64_t end) {
      cpu::Kernels().swiglu_backward(cpu::ElementOf(gate.scalar_type()), Bytes(grad), Bytes(gate),
                                     Bytes(up), MutableBytes(grad_gate), MutableBytes(grad_up),
                                     begin, end);
    });
    return {grad_gate, grad_up};
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
