#include "trainer/optim/outer_step.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace offshoot::trainer {

OuterStep::OuterStep(FlatAdamW& inner, const OuterStepOptions& options, std::int64_t bucket_tail)
    : inner_(inner),
      options_(options),
      start_(inner.parameters().clone()),
      momentum_(at::zeros_like(start_)),
      bucket_(at::zeros({3 * start_.numel() + bucket_tail}, start_.options())) {}

void OuterStep::BeginRound() { start_.copy_(inner_.parameters()); }

at::Tensor& OuterStep::Contribution(double share) {
  const at::NoGradGuard no_grad;
  const std::int64_t count = start_.numel();
  at::Tensor delta = bucket_.narrow(0, 0, count);
  at::sub_out(delta, start_, inner_.parameters());
  delta.mul_(share);
  bucket_.narrow(0, count, count).copy_(inner_.first_moments()).mul_(share);
  bucket_.narrow(0, 2 * count, count).copy_(inner_.second_moments()).mul_(share);
  return bucket_;
}

void OuterStep::Apply() {
  const at::NoGradGuard no_grad;
  const std::int64_t count = start_.numel();
  const at::Tensor delta = bucket_.narrow(0, 0, count);
  momentum_.mul_(options_.momentum).add_(delta);
  // The views that the adapter's tensors are must stay: written in place.
  at::Tensor parameters = inner_.parameters();
  parameters.copy_(start_)
      .sub_(delta, options_.learning_rate)
      .sub_(momentum_, options_.learning_rate * options_.momentum);
  at::Tensor first = inner_.first_moments(), second = inner_.second_moments();
  first.copy_(bucket_.narrow(0, count, count));
  second.copy_(bucket_.narrow(0, 2 * count, count));
}

}  // namespace offshoot::trainer
