// Multi-head latent attention (DeepSeek-V3): queries, keys and values are expanded from low-rank
// latents; one rotated key part is shared by all heads. The cache holds the latents.
#include <ATen/ops/cat.h>

#include "trainer/models/attention.h"

namespace offshoot::trainer {
namespace {

class LatentAttention final : public Attention {
 public:
  LatentAttention(const LatentAttentionSpec& spec, std::int64_t hidden,
                  const std::string& layer_path, ModuleLoader& loader)
      : spec_(spec) {
    const std::string path = layer_path + "." + spec.path;
    const ModuleGroup group = ModuleGroup::kAttention;
    const std::int64_t query_width = spec.heads * (spec.plain_dim + spec.rotary_dim);
    if (spec.query_rank > 0) {
      query_down_ = loader.Linear(path + ".q_a_proj", {hidden, spec.query_rank, spec.bias}, group);
      query_norm_ = loader.Tensor(path + ".q_a_layernorm.weight", {spec.query_rank});
      query_ = loader.Linear(path + ".q_b_proj", {spec.query_rank, query_width}, group);
    } else {
      query_ = loader.Linear(path + ".q_proj", {hidden, query_width}, group);
    }
    latent_ = loader.Linear(path + ".kv_a_proj_with_mqa",
                            {hidden, spec.key_value_rank + spec.rotary_dim, spec.bias}, group);
    latent_norm_ = loader.Tensor(path + ".kv_a_layernorm.weight", {spec.key_value_rank});
    expand_ =
        loader.Linear(path + ".kv_b_proj",
                      {spec.key_value_rank, spec.heads * (spec.plain_dim + spec.value_dim)}, group);
    output_ =
        loader.Linear(path + ".o_proj", {spec.heads * spec.value_dim, hidden, spec.bias}, group);
  }

  at::Tensor Forward(const LayerInput& x, const ForwardContext& context,
                     LayerCache* cache) const override {
    const std::int64_t tokens = x.value.size(0);
    const at::Tensor q = Queries(x, context);
    const at::Tensor compressed = latent_.Apply(x, context);
    at::Tensor latent = RmsNorm(compressed.slice(1, 0, spec_.key_value_rank).contiguous(),
                                latent_norm_, spec_.norm_epsilon);
    at::Tensor rotated =
        Rotate(compressed.slice(1, spec_.key_value_rank).unsqueeze(1).contiguous(), context);
    at::Tensor attended;
    if (cache == nullptr || !cache->first.defined()) {
      const auto [k, v] = Expand(latent, rotated, context);
      attended = CausalAttention(q, k, v, context.row_offsets, spec_.scale);
      if (cache != nullptr) {
        cache->first = latent;
        cache->second = rotated;
      }
    } else {
      cache->first = at::cat({cache->first, latent});
      cache->second = at::cat({cache->second, rotated});
      const auto [k, v] = Expand(cache->first, cache->second, context);
      attended = CachedAttention(q, k, v, spec_.scale, /*window=*/0);
    }
    return output_.Apply(attended.reshape({tokens, spec_.heads * spec_.value_dim}), context);
  }

 private:
  struct KeysAndValues {
    at::Tensor keys;    // [t, heads, plain + rotary]
    at::Tensor values;  // [t, heads, value]
  };

  // [T, heads, plain + rotary], the rotary part last.
  at::Tensor Queries(const LayerInput& x, const ForwardContext& context) const {
    at::Tensor q =
        spec_.query_rank > 0
            ? query_.Apply(RmsNorm(query_down_.Apply(x, context), query_norm_, spec_.norm_epsilon),
                           context)
            : query_.Apply(x, context);
    q = q.view({x.value.size(0), spec_.heads, spec_.plain_dim + spec_.rotary_dim});
    return at::cat(
        {q.slice(2, 0, spec_.plain_dim), Rotate(q.slice(2, spec_.plain_dim).contiguous(), context)},
        2);
  }

  at::Tensor Rotate(const at::Tensor& heads, const ForwardContext& context) const {
    const RotaryTables& tables = context.rotaries[static_cast<std::size_t>(spec_.rotary)];
    return Rotary(heads, tables.cos, tables.sin, tables.pairing);
  }

  // latent [t, rank], rotated [t, 1, rotary]
  KeysAndValues Expand(const at::Tensor& latent, const at::Tensor& rotated,
                       const ForwardContext& context) const {
    const std::int64_t tokens = latent.size(0);
    const at::Tensor both = expand_.Apply(latent, context)
                                .view({tokens, spec_.heads, spec_.plain_dim + spec_.value_dim});
    const at::Tensor shared = rotated.expand({tokens, spec_.heads, spec_.rotary_dim});
    return {at::cat({both.slice(2, 0, spec_.plain_dim), shared}, 2),
            both.slice(2, spec_.plain_dim).contiguous()};
  }

  const LatentAttentionSpec spec_;
  Projection query_down_, query_, latent_, expand_, output_;
  at::Tensor query_norm_, latent_norm_;
};

}  // namespace

std::unique_ptr<Attention> MakeAttention(const LatentAttentionSpec& spec, std::int64_t hidden,
                                         const std::string& layer_path, ModuleLoader& loader) {
  return std::make_unique<LatentAttention>(spec, hidden, layer_path, loader);
}

}  // namespace offshoot::trainer
