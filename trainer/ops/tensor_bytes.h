// Where a tensor's values lie, as bytes for the kernels of cpu/; null for an undefined tensor.
#pragma once

#include <ATen/core/Tensor.h>

namespace offshoot::trainer {

inline const char* Bytes(const at::Tensor& t) {
  return t.defined() ? static_cast<const char*>(t.const_data_ptr()) : nullptr;
}

inline char* MutableBytes(const at::Tensor& t) {
  return t.defined() ? static_cast<char*>(t.mutable_data_ptr()) : nullptr;
}

}  // namespace offshoot::trainer
