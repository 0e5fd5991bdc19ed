// The attention part of a layer: one implementation per kind (softmax_attention.cc,
// latent_attention.cc, lightning_attention.cc), chosen once, when the layer is built. Immutable;
// thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "trainer/models/arch_spec.h"
#include "trainer/models/decoder.h"
#include "trainer/models/forward_context.h"
#include "trainer/models/module_loader.h"

namespace offshoot::trainer {

class Attention {
 public:
  virtual ~Attention() = default;
  // x [T, H], normed -> [T, H]. With a cache, x continues the one sequence whose past it holds (no
  // autograd), and the cache is brought up to date; without, rows are context.row_offsets.
  virtual at::Tensor Forward(const LayerInput& x, const ForwardContext& context,
                             LayerCache* cache) const = 0;
};

// `layer_path` is the module path of the layer, "model.layers.3".
std::unique_ptr<Attention> MakeAttention(const SoftmaxAttentionSpec& spec, std::int64_t hidden,
                                         const std::string& layer_path, ModuleLoader& loader);
std::unique_ptr<Attention> MakeAttention(const LatentAttentionSpec& spec, std::int64_t hidden,
                                         const std::string& layer_path, ModuleLoader& loader);
std::unique_ptr<Attention> MakeAttention(const LightningAttentionSpec& spec, std::int64_t hidden,
                                         const std::string& layer_path, ModuleLoader& loader);

// Attention of the n newest tokens of one sequence to all its keys, for decoding with a cache.
// q [n, nh, D], k [t, nk, D], v [t, nk, Dv] with t >= n -> [n, nh, Dv]. No autograd.
at::Tensor CachedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           double scale, std::int64_t window);

}  // namespace offshoot::trainer
