// The recurrence of lightning attention, as one autograd function:
//   o_t = sum over s <= t of exp(-decay * (t - s)) (q_t . k_s) v_s
// in blocks, with a carried state [D, D] per head, so that time is linear in the row's length. All
// sums are in float32.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace offshoot::trainer {

// q, k, v [T, heads, D]; decay float32 [heads]; row_offsets as in TokenBatch -> [T, heads, D].
at::Tensor LinearRecurrence(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& decay, const std::vector<std::int64_t>& row_offsets);

// The same for the next tokens of one sequence; state float32 [heads, D, D], undefined at its
// start, is brought up to date. No autograd.
at::Tensor ContinueRecurrence(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& decay, at::Tensor& state);

}  // namespace offshoot::trainer
