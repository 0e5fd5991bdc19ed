// The dropout of a LoRA pair's input: which elements live is a pure function of (seed, index), so
// the backward pass makes the same mask again and nothing is saved.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace offshoot::trainer {

// A copy of x with each element zeroed with `probability`, the others divided by 1 - probability.
at::Tensor DropoutCopy(const at::Tensor& x, double probability, std::uint64_t seed);

}  // namespace offshoot::trainer
