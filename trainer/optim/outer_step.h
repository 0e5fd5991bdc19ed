// The outer step of local training: ranks that update by themselves for some steps, then agree on
// one state. DiLoCo (Douillard et al., arXiv:2311.08105, algorithm 1): the outer gradient is how
// far the ranks have moved on average, and the outer optimizer is SGD with Nesterov momentum:
//
//   delta = start - sum(share_r * parameters_r)        momentum = mu * momentum + delta
//   parameters = start - lr * (delta + mu * momentum)
//
// Ranks with more of the round's trained tokens count for more (share_r, summing to 1). The inner
// moments are averaged with the same shares, so that after an outer step all ranks hold one state
// that one checkpoint keeps, whatever number of ranks goes on from it.
//
// Not thread-safe; one job owns one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trainer/optim/adamw.h"

namespace offshoot::trainer {

// The paper's 0.7 and 0.9 move by seven deltas once the momentum has built up, which suits hundreds
// of rounds of pre-training and overshoots in the tens of rounds of a fine-tuning. These move by
// two (LocalSteps tests, ranks_test.cc, have the figures).
struct OuterStepOptions {
  double learning_rate = 1.0;
  double momentum = 0.5;
};

class OuterStep {
 public:
  // bucket_tail: elements of the bucket behind what the ranks average, free for what else they add
  // up. Costs five times the parameters' memory beside the inner optimizer's. inner outlives this.
  OuterStep(FlatAdamW& inner, const OuterStepOptions& options, std::int64_t bucket_tail);

  // A round begins with the parameters as they are now.
  void BeginRound();
  // This rank's part of the round's average, to be summed over the ranks in place.
  at::Tensor& Contribution(double share);
  // The sum is there: sets the inner parameters and moments, the same on every rank.
  void Apply();

  // 1-D, in parameter order. Writing into it is how a checkpoint is restored.
  const at::Tensor& momentum() const { return momentum_; }

 private:
  FlatAdamW& inner_;
  const OuterStepOptions options_;
  at::Tensor start_;
  at::Tensor momentum_;
  at::Tensor bucket_;  // delta, first moments, second moments, tail
};

}  // namespace offshoot::trainer
