// The feed-forward part of a layer: one implementation per kind (dense_mlp.cc, moe.cc), chosen
// once, when the layer is built. Immutable; thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "trainer/models/arch_spec.h"
#include "trainer/models/forward_context.h"
#include "trainer/models/module_loader.h"

namespace offshoot::trainer {

struct FeedForwardResult {
  at::Tensor output;  // [T, H]
  // With context.router_statistics and a router: float32 [2, experts], the sums over tokens of the
  // routing probabilities (with autograd) and of the choices. Else undefined.
  at::Tensor router_sums;
};

class FeedForward {
 public:
  virtual ~FeedForward() = default;
  // x [T, H], normed.
  virtual FeedForwardResult Forward(const LayerInput& x, const ForwardContext& context) const = 0;
};

std::unique_ptr<FeedForward> MakeFeedForward(const DenseMlpSpec& spec, std::int64_t hidden,
                                             const std::string& layer_path, ModuleLoader& loader);
std::unique_ptr<FeedForward> MakeFeedForward(const MoeSpec& spec, std::int64_t hidden,
                                             const std::string& layer_path, ModuleLoader& loader);

}  // namespace offshoot::trainer
