// Grouped-query softmax attention, with rotary embedding and optional norms of query and key heads.
#include <ATen/ops/cat.h>

#include "trainer/models/attention.h"

namespace offshoot::trainer {
namespace {

class SoftmaxAttention final : public Attention {
 public:
  SoftmaxAttention(const SoftmaxAttentionSpec& spec, std::int64_t hidden,
                   const std::string& layer_path, ModuleLoader& loader)
      : spec_(spec) {
    const std::string path = layer_path + "." + spec.path;
    const std::int64_t query_width = spec.heads * spec.head_dim;
    const std::int64_t key_width = spec.key_value_heads * spec.head_dim;
    const bool bias = spec.query_key_value_bias;
    const ModuleGroup group = ModuleGroup::kAttention;
    query_ = loader.Linear(path + ".q_proj", {hidden, query_width, bias}, group);
    key_ = loader.Linear(path + ".k_proj", {hidden, key_width, bias}, group);
    value_ = loader.Linear(path + ".v_proj", {hidden, key_width, bias}, group);
    output_ = loader.Linear(path + ".o_proj", {query_width, hidden, spec.output_bias}, group);
    if (spec.head_norm != HeadNorm::kNone) {
      query_norm_ = loader.Tensor(path + "." + spec.query_norm_name + ".weight", {spec.head_dim});
      key_norm_ = loader.Tensor(path + "." + spec.key_norm_name + ".weight", {spec.head_dim});
    }
  }

  at::Tensor Forward(const LayerInput& x, const ForwardContext& context,
                     LayerCache* cache) const override {
    const std::int64_t tokens = x.value.size(0);
    const auto made = ApplyTogether({&query_, &key_, &value_}, x, context);
    at::Tensor q = made[0].view({tokens, spec_.heads, spec_.head_dim});
    at::Tensor k = made[1].view({tokens, spec_.key_value_heads, spec_.head_dim});
    at::Tensor v = made[2].view({tokens, spec_.key_value_heads, spec_.head_dim});
    q = Place(q, query_norm_, context);
    k = Place(k, key_norm_, context);
    at::Tensor attended;
    if (cache == nullptr) {
      attended = CausalAttention(q, k, v, context.row_offsets, spec_.scale, spec_.window);
    } else {
      const bool empty = !cache->first.defined();
      cache->first = empty ? k : at::cat({cache->first, k});
      cache->second = empty ? v : at::cat({cache->second, v});
      attended = empty ? CausalAttention(q, k, v, context.row_offsets, spec_.scale, spec_.window)
                       : CachedAttention(q, cache->first, cache->second, spec_.scale, spec_.window);
    }
    return output_.Apply(attended.reshape({tokens, spec_.heads * spec_.head_dim}), context);
  }

 private:
  // Norm and rotation of each head, in the family's order.
  at::Tensor Place(at::Tensor heads, const at::Tensor& norm, const ForwardContext& context) const {
    if (spec_.head_norm == HeadNorm::kBeforeRotary) {
      heads = RmsNorm(heads, norm, spec_.head_norm_epsilon);
    }
    if (spec_.rotary >= 0) {
      const RotaryTables& tables = context.rotaries[static_cast<std::size_t>(spec_.rotary)];
      heads = Rotary(heads, tables.cos, tables.sin, tables.pairing);
    }
    if (spec_.head_norm == HeadNorm::kAfterRotary) {
      heads = RmsNorm(heads, norm, spec_.head_norm_epsilon);
    }
    return heads;
  }

  const SoftmaxAttentionSpec spec_;
  Projection query_, key_, value_, output_;
  at::Tensor query_norm_, key_norm_;
};

}  // namespace

std::unique_ptr<Attention> MakeAttention(const SoftmaxAttentionSpec& spec, std::int64_t hidden,
                                         const std::string& layer_path, ModuleLoader& loader) {
  return std::make_unique<SoftmaxAttention>(spec, hidden, layer_path, loader);
}

}  // namespace offshoot::trainer
