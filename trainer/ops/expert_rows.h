// What experts need beside their products, without autograd: our kernels for float32 and bfloat16
// on CPU, LibTorch's operations elsewhere. Thread-safe; callable from inside a parallel task.
#pragma once

#include <ATen/core/Tensor.h>

namespace offshoot::trainer {

// weights[n] * silu(gate) * up; gate, up contiguous [n, I] of one type, weights float32 [n].
at::Tensor WeightedSwiGlu(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& weights);

struct WeightedSwiGluGradients {
  at::Tensor gate, up;  // [n, I]
  at::Tensor weights;   // float32 [n]
};
// From the gradient of WeightedSwiGlu's result [n, I].
WeightedSwiGluGradients WeightedSwiGluBackward(const at::Tensor& grad, const at::Tensor& gate,
                                               const at::Tensor& up, const at::Tensor& weights);

// source [S, H], index int64 [T, K] on the same device -> [T, H] of source's type: row t is the sum
// of rows index[t, :] of source, summed in float32 in that order.
at::Tensor SumRows(const at::Tensor& source, const at::Tensor& index);

}  // namespace offshoot::trainer
