// Lightning attention (MiniMax): a linear recurrence with a decay per head, normed over all heads
// and gated. The cache holds the recurrence's state.
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tensor.h>

#include "trainer/models/attention.h"
#include "trainer/models/linear_recurrence.h"

namespace offshoot::trainer {
namespace {

class LightningAttention final : public Attention {
 public:
  LightningAttention(const LightningAttentionSpec& spec, std::int64_t hidden,
                     const std::string& layer_path, ModuleLoader& loader)
      : spec_(spec) {
    const std::string path = layer_path + "." + spec.path;
    const ModuleGroup group = ModuleGroup::kAttention;
    const std::int64_t width = spec.heads * spec.head_dim;
    projection_ = loader.Linear(path + ".qkv_proj", {hidden, 3 * width}, group);
    gate_ = loader.Linear(path + ".output_gate", {hidden, width}, group);
    norm_ = loader.Tensor(path + ".norm.weight", {width});
    output_ = loader.Linear(path + ".out_proj", {width, hidden}, group);
    if (norm_.defined()) {
      decay_ = at::tensor(spec.decay, at::kDouble).to(at::kFloat).to(norm_.device());
    }
  }

  at::Tensor Forward(const LayerInput& x, const ForwardContext& context,
                     LayerCache* cache) const override {
    const std::int64_t tokens = x.value.size(0);
    // Each head has its q, k and v side by side.
    const at::Tensor qkv =
        at::silu(projection_.Apply(x, context)).view({tokens, spec_.heads, 3, spec_.head_dim});
    const at::Tensor q = qkv.select(2, 0);
    const at::Tensor k = qkv.select(2, 1);
    const at::Tensor v = qkv.select(2, 2);
    at::Tensor attended = cache == nullptr ? LinearRecurrence(q, k, v, decay_, context.row_offsets)
                                           : ContinueRecurrence(q, k, v, decay_, cache->first);
    attended = RmsNorm(attended.reshape({tokens, spec_.heads * spec_.head_dim}), norm_,
                       spec_.norm_epsilon);
    const at::Tensor open = at::sigmoid(gate_.Apply(x, context));
    return output_.Apply(open.mul(attended), context);
  }

 private:
  const LightningAttentionSpec spec_;
  Projection projection_, gate_, output_;
  at::Tensor norm_, decay_;
};

}  // namespace

std::unique_ptr<Attention> MakeAttention(const LightningAttentionSpec& spec, std::int64_t hidden,
                                         const std::string& layer_path, ModuleLoader& loader) {
  return std::make_unique<LightningAttention>(spec, hidden, layer_path, loader);
}

}  // namespace offshoot::trainer
