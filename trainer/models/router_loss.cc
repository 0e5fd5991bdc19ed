#include "trainer/models/router_loss.h"

#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

namespace offshoot::trainer {

void RouterLoss::Add(const at::Tensor& router_sums, std::int64_t tokens) {
  if (!router_sums.defined()) return;
  sums_ = sums_.defined() ? sums_.add(router_sums) : router_sums;
  tokens_ += tokens;
}

at::Tensor RouterLoss::Value(double coefficient) const {
  if (!sums_.defined()) return at::zeros({}, at::kFloat);
  const auto tokens = static_cast<double>(tokens_);
  const at::Tensor choices = sums_.select(0, 1).detach().div(tokens);
  const at::Tensor probabilities = sums_.select(0, 0).div(tokens);
  return choices.mul(probabilities).sum().mul(coefficient * static_cast<double>(sums_.size(1)));
}

}  // namespace offshoot::trainer
