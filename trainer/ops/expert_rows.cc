#include "trainer/ops/expert_rows.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/sigmoid.h>
#include <c10/util/Exception.h>

#include "trainer/ops/cpu/kernels.h"
#include "trainer/ops/cpu/parallel.h"
#include "trainer/ops/products.h"
#include "trainer/ops/tensor_bytes.h"

namespace offshoot::trainer {
namespace {

cpu::WeightedSwiglu Describe(const at::Tensor& gate, const at::Tensor& up,
                             const at::Tensor& weights) {
  TORCH_CHECK(gate.is_contiguous() && up.is_contiguous() && weights.is_contiguous() &&
                  gate.sizes() == up.sizes() && gate.scalar_type() == up.scalar_type() &&
                  weights.numel() == gate.size(0) && weights.scalar_type() == at::kFloat,
              "gate and up have one shape and type, and a weight for each row");
  cpu::WeightedSwiglu s = {};
  s.type = cpu::ElementOf(gate.scalar_type());
  s.rows = gate.size(0);
  s.width = gate.size(1);
  s.gate = Bytes(gate);
  s.up = Bytes(up);
  s.weights = weights.const_data_ptr<float>();
  return s;
}

// silu(g) = g * s(g); its slope is s(g) * (1 + g * (1 - s(g))). In float32.
WeightedSwiGluGradients BackwardElsewhere(const at::Tensor& grad, const at::Tensor& gate,
                                          const at::Tensor& up, const at::Tensor& weights) {
  const auto type = gate.scalar_type();
  const at::Tensor g = gate.to(at::kFloat), u = up.to(at::kFloat), d = grad.to(at::kFloat);
  const at::Tensor weight = weights.unsqueeze(1);
  const at::Tensor sigmoid = at::sigmoid(g);
  const at::Tensor silu = g * sigmoid, slope = d * weight;
  return {(slope * u * sigmoid * (g * (1 - sigmoid) + 1)).to(type), (slope * silu).to(type),
          (d * silu * u).sum(-1)};
}

}  // namespace

at::Tensor WeightedSwiGlu(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& weights) {
  if (!cpu::Supported(gate)) {
    const at::Tensor g = gate.to(at::kFloat);
    return (g * at::sigmoid(g) * up * weights.unsqueeze(1)).to(gate.scalar_type());
  }
  const at::Tensor out = at::empty_like(gate);
  cpu::WeightedSwiglu s = Describe(gate, up, weights);
  s.out = MutableBytes(out);
  cpu::Kernels().weighted_swiglu_forward(s);
  return out;
}

WeightedSwiGluGradients WeightedSwiGluBackward(const at::Tensor& grad, const at::Tensor& gate,
                                               const at::Tensor& up, const at::Tensor& weights) {
  if (!cpu::Supported(gate)) return BackwardElsewhere(grad, gate, up, weights);
  TORCH_CHECK(grad.is_contiguous() && grad.sizes() == gate.sizes() &&
                  grad.scalar_type() == gate.scalar_type(),
              "a gradient has the shape and type of what it is of");
  WeightedSwiGluGradients result = {at::empty_like(gate), at::empty_like(up),
                                    at::empty_like(weights)};
  cpu::WeightedSwiglu s = Describe(gate, up, weights);
  s.grad = Bytes(grad);
  s.grad_gate = MutableBytes(result.gate);
  s.grad_up = MutableBytes(result.up);
  s.grad_weights = result.weights.mutable_data_ptr<float>();
  cpu::Kernels().weighted_swiglu_backward(s);
  return result;
}

at::Tensor SumRows(const at::Tensor& source, const at::Tensor& index) {
  if (!cpu::Supported(source)) {
    return at::index_select(source, 0, index.flatten())
        .view({index.size(0), index.size(1), source.size(1)})
        .sum(1, /*keepdim=*/false, at::kFloat)
        .to(source.scalar_type());
  }
  TORCH_CHECK(source.is_contiguous() && index.is_contiguous(), "rows to sum must be contiguous");
  const at::Tensor out = at::empty({index.size(0), source.size(1)}, source.options());
  const cpu::RowSums sums = {
      cpu::ElementOf(source.scalar_type()), index.size(1),    source.size(1), Bytes(source),
      index.const_data_ptr<std::int64_t>(), MutableBytes(out)};
  cpu::ParallelTasks(
      index.size(0), 0,
      [&](std::int64_t begin, std::int64_t end, void*) {
        cpu::Kernels().row_sums(sums, begin, end);
      },
      cpu::kShortRows);
  return out;
}

}  // namespace offshoot::trainer
