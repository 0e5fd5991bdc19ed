// The experts of one layer, run grouped: tokens are sorted by expert, each expert with work does
// one product per matrix, an expert without work costs nothing. One autograd function with a
// hand-written backward pass, which keeps the two inner activations and recomputes the rest.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "trainer/models/forward_context.h"

namespace offshoot::trainer {

// down(silu(gate(x)) * up(x)), with LoRA on each matrix that has an adapter.
struct Expert {
  Projection gate, up, down;
};

// x [T, H]; experts int64 [T, K] on CPU or the device of x; weights float32 [T, K] -> [T, H], the
// sum over k of weights[t, k] * Expert_{experts[t, k]}(x[t]), summed in float32. `all` must outlive
// the backward pass.
at::Tensor RunExperts(const std::vector<Expert>& all, const at::Tensor& x,
                      const at::Tensor& experts, const at::Tensor& weights,
                      const ForwardContext& context);

}  // namespace offshoot::trainer
