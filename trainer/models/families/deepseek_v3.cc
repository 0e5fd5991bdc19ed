// DeepSeek-V3 and R1, and Kimi K2: latent attention; sigmoid routing among groups of experts with a
// correction that counts for the choice only, shared experts, dense first layers.
#include <algorithm>
#include <cmath>

#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {
namespace {

LatentAttentionSpec ReadAttention(ConfigReader& config, ArchSpec& spec) {
  LatentAttentionSpec attention;
  attention.path = "self_attn";
  attention.heads = config.Count("num_attention_heads");
  if (config.Count("num_key_value_heads", attention.heads) != attention.heads) {
    config.Refuse("num_key_value_heads",
                  "must equal num_attention_heads: the heads share one "
                  "latent.");
  }
  // null means no query latent; an absent key means the class's default.
  attention.query_rank =
      config.Contains("q_lora_rank") ? config.CountOrZero("q_lora_rank", 0) : 1536;
  attention.key_value_rank = config.Count("kv_lora_rank", 512);
  attention.plain_dim = config.Count("qk_nope_head_dim", 128);
  attention.rotary_dim = config.Count("qk_rope_head_dim", 64);
  attention.value_dim = config.Count("v_head_dim", 128);
  attention.bias = config.Flag("attention_bias", false);
  // Derived values that newer files list.
  config.Ignore({"head_dim", "qk_head_dim"});
  RotarySpec rotary = ReadRotary(config, {.head_dim = attention.rotary_dim});
  rotary.pairing = config.Flag("rope_interleave", true) ? RotaryPairing::kInterleaved
                                                        : RotaryPairing::kHalfSplit;
  attention.rotary = AddRotary(spec, rotary);
  attention.scale =
      1.0 / std::sqrt(static_cast<double>(attention.plain_dim + attention.rotary_dim));
  const double mscale = ReadYarnMscaleAllDim(config);
  if (mscale != 0.0) attention.scale *= std::pow(YarnMagnitude(rotary.factor, mscale), 2.0);
  return attention;
}

RouterSpec ReadRouter(ConfigReader& config) {
  config.Require("scoring_func", "sigmoid");
  config.Require("topk_method", "noaux_tc");
  RouterSpec router;
  router.weight_name = "mlp.gate.weight";
  router.correction_name = "mlp.gate.e_score_correction_bias";
  router.score = RouterScore::kSigmoid;
  router.float32_product = true;
  router.experts = config.Count("n_routed_experts", config.Count("num_local_experts", 256));
  router.chosen = config.Count("num_experts_per_tok", 8);
  router.groups = config.Count("n_group", 8);
  router.chosen_groups = config.Count("topk_group", 4);
  router.normalize = config.Flag("norm_topk_prob", true);
  router.normalize_addend = 1e-20;
  router.scaling = config.Number("routed_scaling_factor", 2.5);
  CheckRouter(config, router);
  return router;
}

}  // namespace

ArchSpec ReadDeepseekV3(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-6, false);
  const std::int64_t layers = config.Count("num_hidden_layers");
  config.Require("moe_layer_freq", 1);
  // The reference has no auxiliary loss; quantisation is read with the weights.
  config.Ignore({"aux_loss_alpha", "seq_aux", "output_router_logits"});
  IgnoreExtraLayers(spec, layers,
                    std::max<std::int64_t>({config.CountOrZero("num_nextn_predict_layers", 1),
                                            config.CountOrZero("num_mtp_layers", 1), 1}));
  spec.mixture = true;
  MoeSpec moe;
  moe.experts_path = "mlp.experts";
  moe.intermediate = config.Count("moe_intermediate_size", 2048);
  moe.router = ReadRouter(config);
  const std::int64_t shared = config.CountOrZero("n_shared_experts", 1);
  if (shared > 0) moe.shared = {{"mlp.shared_experts", moe.intermediate * shared, false}};

  const DenseMlpSpec dense{"mlp", config.Count("intermediate_size", 18432), false};
  const std::int64_t dense_layers = config.CountOrZero("first_k_dense_replace", 3);
  LayerSpec layer;
  layer.attention = ReadAttention(config, spec);
  for (std::int64_t i = 0; i < layers; ++i) {
    if (i < dense_layers) {
      layer.feed_forward = dense;
    } else {
      layer.feed_forward = moe;
    }
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace offshoot::trainer
