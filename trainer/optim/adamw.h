// AdamW over one flat float32 buffer. The parameters, gradients and both moments of a job lie back
// to back; the adapter's tensors are views of it, so a step is one pass over memory, an all-reduce
// is one call, and a checkpoint is three tensors.
//
// The update is that of torch.optim.AdamW (decoupled weight decay, Loshchilov & Hutter,
// arXiv:1711.05101) with its order of operations. Results do not depend on the number of threads:
// the update is elementwise and the norm is summed in fixed chunks.
//
// Not thread-safe; one job owns one optimizer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace offshoot::trainer {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
};

class FlatAdamW {
 public:
  // parameters: float32 leaves on one device, each with an autograd accumulator or none yet. Their
  // storage is replaced by views of the flat buffer (values kept) and .grad is set to views of the
  // flat gradient, into which backward passes accumulate. bucket_tail: elements of the bucket
  // behind the gradients, free for what else the ranks add up.
  FlatAdamW(const std::vector<at::Tensor>& parameters, const AdamWOptions& options,
            std::int64_t bucket_tail = 0);

  void ZeroGradients();
  // L2 norm of the gradient. Deterministic for any number of threads. NaN or infinity is passed on.
  double GradientNorm() const;
  // One update with the gradients times gradient_scale (the clipping coefficient).
  // step counts from 1 and drives the bias correction.
  void Step(std::int64_t step, double learning_rate, double gradient_scale);

  // 1-D, same length; in parameter order. Writing into them is how a checkpoint is restored.
  const at::Tensor& parameters() const { return parameters_; }
  const at::Tensor& gradients() const { return gradients_; }
  // The gradients and the tail in one piece: one all-reduce sums both.
  const at::Tensor& bucket() const { return bucket_; }
  const at::Tensor& first_moments() const { return first_moments_; }
  const at::Tensor& second_moments() const { return second_moments_; }

 private:
  AdamWOptions options_;
  at::Tensor parameters_;
  at::Tensor bucket_;
  at::Tensor gradients_;  // a view of bucket_
  at::Tensor first_moments_;
  at::Tensor second_moments_;
};

// The factor that brings a gradient of this norm down to max_norm, as torch's clip_grad_norm_;
// 1 when it is smaller already or max_norm is 0 (no clipping).
double ClippingCoefficient(double norm, double max_norm);

}  // namespace offshoot::trainer
