// From host to device.
#pragma once

#include <ATen/core/Tensor.h>

namespace offshoot::trainer {

// t, which the host has just made, on the device: the host does not wait for what runs there.
inline at::Tensor ToDevice(const at::Tensor& t, const at::Device& device) {
  if (!device.is_cuda()) return t.to(device);
  return t.pin_memory().to(t.options().device(device), /*non_blocking=*/true);
}

}  // namespace offshoot::trainer
