#include "trainer/optim/adamw.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

namespace offshoot::trainer {
namespace {

// The unit of work and of summing: fixed, so that neither depends on the number of threads.
constexpr std::int64_t kChunkElements = 1 << 16;

struct StepFactors {
  float decay;         // 1 - lr * weight_decay
  float one_minus_b1;  // lerp weight of the first moment
  float beta2;
  float one_minus_b2;
  float root_bias2;  // sqrt(1 - beta2^step)
  float epsilon;
  float minus_step_size;  // -lr / (1 - beta1^step)
  float gradient_scale;
};

void UpdateChunk(const StepFactors& f, std::int64_t count, float* __restrict p,
                 const float* __restrict g, float* __restrict m, float* __restrict v) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float gradient = g[i] * f.gradient_scale;
    const float first = m[i] + f.one_minus_b1 * (gradient - m[i]);
    const float second = v[i] * f.beta2 + f.one_minus_b2 * gradient * gradient;
    const float denominator = std::sqrt(second) / f.root_bias2 + f.epsilon;
    p[i] = p[i] * f.decay + f.minus_step_size * (first / denominator);
    m[i] = first;
    v[i] = second;
  }
}

std::int64_t ChunkCount(std::int64_t elements) {
  return (elements + kChunkElements - 1) / kChunkElements;
}

}  // namespace

FlatAdamW::FlatAdamW(const std::vector<at::Tensor>& parameters, const AdamWOptions& options,
                     std::int64_t bucket_tail)
    : options_(options) {
  const at::NoGradGuard no_grad;
  std::int64_t total = 0;
  for (const at::Tensor& parameter : parameters) {
    total += parameter.numel();
  }
  const at::TensorOptions tensor_options =
      parameters.empty() ? at::TensorOptions(at::kFloat) : parameters.front().options();
  parameters_ = at::empty({total}, tensor_options.requires_grad(false));
  bucket_ = at::zeros({total + bucket_tail}, tensor_options.requires_grad(false));
  gradients_ = bucket_.narrow(0, 0, total);
  first_moments_ = at::zeros_like(parameters_);
  second_moments_ = at::zeros_like(parameters_);
  std::int64_t offset = 0;
  for (const at::Tensor& parameter : parameters) {
    at::Tensor view = parameters_.narrow(0, offset, parameter.numel()).view(parameter.sizes());
    view.copy_(parameter.detach());
    parameter.set_data(view);
    parameter.mutable_grad() =
        gradients_.narrow(0, offset, parameter.numel()).view(parameter.sizes());
    offset += parameter.numel();
  }
}

void FlatAdamW::ZeroGradients() {
  const at::NoGradGuard no_grad;
  gradients_.zero_();
}

double FlatAdamW::GradientNorm() const {
  const at::NoGradGuard no_grad;
  if (!gradients_.is_cpu()) {
    return at::linalg_vector_norm(gradients_).item<double>();
  }
  const float* data = gradients_.const_data_ptr<float>();
  const std::int64_t total = gradients_.numel();
  std::vector<double> partial(static_cast<std::size_t>(ChunkCount(total)));
  at::parallel_for(0, ChunkCount(total), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      const std::int64_t first = chunk * kChunkElements;
      const std::int64_t last = std::min(total, first + kChunkElements);
      // Four sums, so that the loop vectorises without reordering what the compiler may not.
      double sums[4] = {0, 0, 0, 0};
      std::int64_t i = first;
      for (; i + 4 <= last; i += 4) {
        for (int lane = 0; lane < 4; ++lane) {
          const double value = data[i + lane];
          sums[lane] += value * value;
        }
      }
      for (; i < last; ++i) {
        const double value = data[i];
        sums[0] += value * value;
      }
      partial[static_cast<std::size_t>(chunk)] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
  });
  double sum = 0;
  for (const double value : partial) {
    sum += value;
  }
  return std::sqrt(sum);
}

void FlatAdamW::Step(std::int64_t step, double learning_rate, double gradient_scale) {
  const at::NoGradGuard no_grad;
  const double bias1 = 1.0 - std::pow(options_.beta1, static_cast<double>(step));
  const double bias2 = 1.0 - std::pow(options_.beta2, static_cast<double>(step));
  if (!parameters_.is_cpu()) {
    if (gradient_scale != 1.0) {
      gradients_.mul_(gradient_scale);
    }
    parameters_.mul_(1.0 - learning_rate * options_.weight_decay);
    first_moments_.lerp_(gradients_, 1.0 - options_.beta1);
    second_moments_.mul_(options_.beta2).addcmul_(gradients_, gradients_, 1.0 - options_.beta2);
    const at::Tensor denominator =
        at::sqrt(second_moments_).div_(std::sqrt(bias2)).add_(options_.epsilon);
    parameters_.addcdiv_(first_moments_, denominator, -learning_rate / bias1);
    return;
  }
  const StepFactors factors = {
      .decay = static_cast<float>(1.0 - learning_rate * options_.weight_decay),
      .one_minus_b1 = static_cast<float>(1.0 - options_.beta1),
      .beta2 = static_cast<float>(options_.beta2),
      .one_minus_b2 = static_cast<float>(1.0 - options_.beta2),
      .root_bias2 = static_cast<float>(std::sqrt(bias2)),
      .epsilon = static_cast<float>(options_.epsilon),
      .minus_step_size = static_cast<float>(-learning_rate / bias1),
      .gradient_scale = static_cast<float>(gradient_scale),
  };
  float* p = parameters_.mutable_data_ptr<float>();
  const float* g = gradients_.const_data_ptr<float>();
  float* m = first_moments_.mutable_data_ptr<float>();
  float* v = second_moments_.mutable_data_ptr<float>();
  const std::int64_t total = parameters_.numel();
  at::parallel_for(0, ChunkCount(total), 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t first = begin * kChunkElements;
    const std::int64_t count = std::min(total, end * kChunkElements) - first;
    UpdateChunk(factors, count, p + first, g + first, m + first, v + first);
  });
}

double ClippingCoefficient(double norm, double max_norm) {
  if (max_norm <= 0) {
    return 1.0;
  }
  return std::min(1.0, max_norm / (norm + 1e-6));
}

}  // namespace offshoot::trainer
