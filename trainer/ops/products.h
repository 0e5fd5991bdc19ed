// Matrix products of the operations, without autograd: our kernels for float32 and bfloat16 on CPU
// (allocation, threads and the choice of operand types happen here), LibTorch's elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trainer/ops/cpu/kernels.h"

namespace offshoot::trainer {

class FrozenLinear;

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
// next, if given, is what the caller multiplies with afterwards, of which only b counts: this
// product's end fetches the beginning of it from memory.
void MultiplyInto(const at::Tensor& out, const std::vector<Addend>& addends,
                  const at::Tensor& bias = {}, double alpha = 1.0, const Addend* next = nullptr);
// out += sum of products, with out in float32.
void MultiplyAdding(const at::Tensor& out, const std::vector<Addend>& addends);
at::Tensor Multiply(const std::vector<Addend>& addends, const at::Tensor& bias = {},
                    double alpha = 1.0);

// Products with frozen weights, which may have to be unpacked: no more than a piece at a time is.
//
// x [T, I] times W^T [I, O], plus more.a [T, r] times more.b^T with more.b [O, r] if given, plus
// the weight's bias.
at::Tensor MultiplyWeight(const at::Tensor& x, const FrozenLinear& weight,
                          const Addend* more = nullptr);
// Sum of grad_i [T, O_i] times W_i [O_i, I], plus `more`. The order of the sums is that of the
// parts.
struct WeightPart {
  at::Tensor grad;
  const FrozenLinear* weight;
};
at::Tensor MultiplyWeightsBack(const std::vector<WeightPart>& parts,
                               const std::vector<Addend>& more = {});

// a^T b for a [T, M], b [T, N] of one type: float32 [M, N].
at::Tensor MultiplyTransposed(const at::Tensor& a, const at::Tensor& b);

}  // namespace offshoot::trainer
