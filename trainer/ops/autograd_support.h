// What the autograd functions of this folder share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <utility>

namespace offshoot::trainer {

// Carries a C++ value from an autograd function's forward to its backward.
template <typename T>
struct SavedValue : torch::CustomClassHolder {
  explicit SavedValue(T v) : value(std::move(v)) {}
  T value;
};

template <typename T>
void SaveValue(torch::autograd::AutogradContext* context, const char* name, T value) {
  context->saved_data[name] =
      at::IValue::make_capsule(c10::make_intrusive<SavedValue<T>>(std::move(value)));
}

template <typename T>
const T& LoadValue(torch::autograd::AutogradContext* context, const char* name) {
  const auto holder = context->saved_data.at(name).toCapsule();
  return static_cast<const SavedValue<T>*>(holder.get())->value;
}

}  // namespace offshoot::trainer
