// For tests: the gradients of a function against central differences along random directions.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <vector>

namespace offshoot::trainer {

// `run` gives a tensor from the leaves (float32, changed in place here and put back); its product
// with a random tensor is differentiated. Three directions for each leaf; the difference may be
// `tolerance` of the gradient's length, which is the noise of float32 at this step.
inline void ExpectFiniteDifferences(const std::function<at::Tensor()>& run,
                                    const std::vector<at::Tensor>& leaves,
                                    double tolerance = 5e-3) {
  constexpr double kStep = 1e-2;
  at::Generator generator = at::detail::createCPUGenerator(99);
  const at::Tensor out = run();
  const at::Tensor upstream = at::randn(out.sizes(), generator, at::TensorOptions(at::kFloat));
  const auto gradients = torch::autograd::grad({out}, leaves, {upstream});
  const at::NoGradGuard no_grad;
  const auto value = [&] {
    return run().to(at::kDouble).mul(upstream.to(at::kDouble)).sum().item<double>();
  };
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    const at::Tensor kept = leaves[i].detach().clone();
    const at::Tensor leaf = leaves[i].detach();
    for (int direction = 0; direction < 3; ++direction) {
      at::Tensor along = at::randn(kept.sizes(), generator, at::TensorOptions(at::kFloat));
      along.div_(along.norm());
      leaf.copy_(kept.add(along, kStep));
      const double above = value();
      leaf.copy_(kept.add(along, -kStep));
      const double below = value();
      leaf.copy_(kept);
      const double expected = (above - below) / (2 * kStep);
      const double found = gradients[i].to(at::kDouble).mul(along).sum().item<double>();
      EXPECT_NEAR(found, expected, tolerance * (1e-2 + gradients[i].norm().item<double>()))
          << "leaf " << i << ", direction " << direction;
    }
  }
}

}  // namespace offshoot::trainer
