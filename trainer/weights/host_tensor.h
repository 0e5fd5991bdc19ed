// Memory for weights that are converted while they are read.
#pragma once

#include <ATen/core/Tensor.h>

namespace offshoot::trainer {

// An uninitialised tensor on the CPU. Large ones are mappings of their own: the allocator's heap
// would keep what a passing tensor leaves behind, and loading would take more than its result.
// Thread-safe.
at::Tensor NewHostTensor(at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace offshoot::trainer
