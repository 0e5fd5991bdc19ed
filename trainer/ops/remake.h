// What MakeAgain is made of.
#pragma once

#include <ATen/core/Tensor.h>

namespace offshoot::trainer {

// RmsNorm's result from its input, 1 / rms of each row and its weight; bit for bit.
at::Tensor NormAgain(const at::Tensor& x, const at::Tensor& inverse, const at::Tensor& weight);

}  // namespace offshoot::trainer
