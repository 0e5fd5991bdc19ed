// The router of a mixture of experts: which experts each token goes to, and with what weight.
// Its weights are frozen; gradients flow through the weights of the chosen experts to the token,
// not through the choice. Immutable; thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "trainer/models/arch_spec.h"
#include "trainer/models/module_loader.h"

namespace offshoot::trainer {

struct Routing {
  at::Tensor experts;  // int64 [T, chosen]
  at::Tensor weights;  // float32 [T, chosen], with autograd
  // float32 [2, experts] as FeedForwardResult::router_sums, if wanted; else undefined
  at::Tensor sums;
};

class Router {
 public:
  Router(const RouterSpec& spec, std::int64_t hidden, const std::string& layer_path,
         ModuleLoader& loader);
  // x [T, H]
  Routing Route(const at::Tensor& x, bool wants_sums) const;

 private:
  // scores float32 [T, E] without autograd -> int64 [T, chosen]
  at::Tensor Choose(const at::Tensor& scores) const;

  const RouterSpec spec_;
  at::Tensor weight_, correction_;
};

}  // namespace offshoot::trainer
