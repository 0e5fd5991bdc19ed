// LibTorch's flash attention (Dao, arXiv:2307.08691) over rows back to back, on GPUs that have it:
// nothing of [L, L] is kept.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace offshoot::trainer {

struct AttentionGeometry {
  std::vector<std::int64_t> row_offsets;  // as in TokenBatch
  double scale;
  std::int64_t window;  // a query sees so many keys, its own among them; 0: all before it
};

struct Attended {
  at::Tensor out;
  at::Tensor log_sums;  // float32 [nh, T]
  // What flash attention's backward pass wants back; undefined without it.
  at::Tensor random_state, unused;
};

struct AttentionGradients {
  at::Tensor q, k, v;
};

// Whether q [T, nh, D], k and v can go this way: bfloat16 or float16, heads of at most 256, a GPU
// of compute capability 8.0 or more.
bool TakesFlashAttention(const at::Tensor& q, const at::Tensor& v);

Attended FlashForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const AttentionGeometry& geometry);
AttentionGradients FlashBackward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const Attended& attended, const at::Tensor& grad_out,
                                 const AttentionGeometry& geometry);

}  // namespace offshoot::trainer
