// Qwen3-MoE: Qwen3's attention; experts chosen by a plain softmax, none shared.
#include <algorithm>

#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {

ArchSpec ReadQwen3Moe(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-6, false);
  const std::int64_t layers = config.Count("num_hidden_layers");
  SoftmaxAttentionSpec attention = ReadQwen3Attention(config, spec, /*head_dim=*/0);
  // Every layer slides, if any does.
  if (config.Flag("use_sliding_window", false))
    attention.window = config.Count("sliding_window", 4096);
  config.Ignore({"sliding_window", "max_window_layers", "shared_expert_intermediate_size"});
  attention.rotary = AddRotary(spec, ReadRotary(config, {.head_dim = attention.head_dim}));

  spec.mixture = true;
  MoeSpec moe;
  moe.experts_path = "mlp.experts";
  moe.intermediate = config.Count("moe_intermediate_size", 768);
  moe.router.weight_name = "mlp.gate.weight";
  moe.router.experts = config.Count("num_experts", config.Count("num_local_experts", 128));
  moe.router.chosen = config.Count("num_experts_per_tok", 8);
  moe.router.normalize = config.Flag("norm_topk_prob", false);
  CheckRouter(config, moe.router);
  spec.router_loss_coefficient = ReadRouterLoss(config);

  const DenseMlpSpec dense{"mlp", config.Count("intermediate_size", 6144), false};
  const std::vector<std::int64_t> dense_layers = config.Integers("mlp_only_layers");
  const std::int64_t step = config.Count("decoder_sparse_step", 1);
  for (std::int64_t i = 0; i < layers; ++i) {
    const bool listed =
        std::find(dense_layers.begin(), dense_layers.end(), i) != dense_layers.end();
    LayerSpec layer;
    layer.attention = attention;
    if (listed || (i + 1) % step != 0) {
      layer.feed_forward = dense;
    } else {
      layer.feed_forward = moe;
    }
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace offshoot::trainer
