// Matrix products of the operations, without autograd: our kernels for float32 and bfloat16 on CPU
// (allocation, threads and the choice of operand types happen here), LibTorch's elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trainer/ops/cpu/kernels.h"

namespace offshoot::trainer {

namespace cpu {
// Whether the kernels take this tensor.
bool Supported(const at::Tensor& t);
Element ElementOf(at::ScalarType type);
}  // namespace cpu

// a [M, K] times b: [K, N], or [N, K] if b_transposed. Rows of a and of b are contiguous.
struct Addend {
  at::Tensor a;
  at::Tensor b;
  bool b_transposed = false;
};

// out = alpha * sum of products + bias. out [M, N] is float32 or bfloat16 with contiguous rows (it
// may be some columns of a wider tensor). All `a` share one type. Sums are kept in float32.
void MultiplyInto(const at::Tensor& out, const std::vector<Addend>& addends,
                  const at::Tensor& bias = {}, double alpha = 1.0);
at::Tensor Multiply(const std::vector<Addend>& addends, const at::Tensor& bias = {},
                    double alpha = 1.0);

// a^T b for a [T, M], b [T, N] of one type: float32 [M, N].
at::Tensor MultiplyTransposed(const at::Tensor& a, const at::Tensor& b);

}  // namespace offshoot::trainer
