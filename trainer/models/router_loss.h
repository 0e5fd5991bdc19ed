// The auxiliary loss that keeps routers balanced, as transformers' load_balancing_loss_func: over
// the tokens of all MoE layers pooled, experts * sum_e F_e P_e, with F_e the choices of expert e
// per token and P_e its mean probability. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace offshoot::trainer {

class RouterLoss {
 public:
  // One layer's FeedForwardResult::router_sums over `tokens` tokens; undefined is no router.
  void Add(const at::Tensor& router_sums, std::int64_t tokens);
  // coefficient times the loss; a float32 zero if nothing was added.
  at::Tensor Value(double coefficient) const;

 private:
  at::Tensor sums_;
  std::int64_t tokens_ = 0;
};

}  // namespace offshoot::trainer
