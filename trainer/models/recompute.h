// Gradient checkpointing: a segment of the network is run without keeping anything but its input,
// and run again in the backward pass. Exact as long as the segment is a function of its inputs
// (dropout masks are, since their seeds are explicit).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace offshoot::trainer {

// A segment: x -> outputs, all defined. Called once in forward and once, with `again`, in backward,
// where only the gradients count and not the values of the outputs; must be callable until then.
using Segment = std::function<std::vector<at::Tensor>(const at::Tensor& x, bool again)>;

// `parameters` are the leaves that require grad and that the segment uses besides x.
std::vector<at::Tensor> Recompute(const Segment& segment, const at::Tensor& x,
                                  const std::vector<at::Tensor>& parameters);

}  // namespace offshoot::trainer
