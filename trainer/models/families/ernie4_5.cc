// ERNIE 4.5, dense and MoE: Llama's block with interleaved rope; experts chosen by a softmax with a
// correction that counts for the choice only.
#include <algorithm>

#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {
namespace {

constexpr double kTheta = 500000.0;

SoftmaxAttentionSpec ReadAttention(ConfigReader& config, ArchSpec& spec, std::int64_t head_dim,
                                   bool bias) {
  config.Require("compression_ratio", 1.0);
  config.Ignore({"use_flash_attention", "use_rmsnorm", "weight_share_add_bias", "fuse_rms_norm",
                 "rope_3d", "tensor_parallel_degree", "num_nextn_predict_layers",
                 "multi_token_pred_lambda", "use_recompute_mtp", "enable_mtp_magic_send",
                 "moe_orthogonal_loss_lambda", "moe_group", "moe_use_hard_gate"});
  SoftmaxAttentionSpec attention = ReadSoftmaxAttention(config, head_dim);
  attention.query_key_value_bias = bias;
  attention.output_bias = bias;
  RotarySpec rotary = ReadRotary(config, {.head_dim = attention.head_dim, .theta = kTheta});
  rotary.pairing = RotaryPairing::kInterleaved;
  attention.rotary = AddRotary(spec, rotary);
  return attention;
}

}  // namespace

ArchSpec ReadErnie45(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-5, true);
  const bool bias = config.Flag("use_bias", false);
  // head_dim: 128 if the key is absent, hidden / heads if it is null.
  std::int64_t head_dim = 0;
  if (!config.Contains("head_dim")) head_dim = 128;
  LayerSpec layer;
  layer.attention = ReadAttention(config, spec, head_dim, bias);
  layer.feed_forward = DenseMlpSpec{"mlp", config.Count("intermediate_size"), bias};
  spec.layers.assign(static_cast<std::size_t>(config.Count("num_hidden_layers")), layer);
  return spec;
}

ArchSpec ReadErnie45Moe(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-5, true);
  const std::int64_t layers = config.Count("num_hidden_layers");
  const bool bias = config.Flag("use_bias", false);
  spec.head_bias = bias;
  spec.ignored_tensors.emplace_back(R"(.*mtp.*)");
  IgnoreExtraLayers(spec, layers, config.CountOrZero("num_nextn_predict_layers", 0));
  config.Require("moe_gate", "topk");
  config.Require("moe_use_aux_free", true);
  config.Ignore({"moe_capacity"});

  spec.mixture = true;
  MoeSpec moe;
  moe.experts_path = "mlp.experts";
  moe.intermediate = config.Count("moe_intermediate_size", 1536);
  moe.router.weight_name = "mlp.gate.weight";
  moe.router.correction_name = "mlp.moe_statics.e_score_correction_bias";
  moe.router.float32_product = true;
  moe.router.experts = config.Count("moe_num_experts", 64);
  moe.router.chosen = config.Count("moe_k", 6);
  moe.router.normalize_minimum = config.Number("moe_norm_min", 1e-12);
  CheckRouter(config, moe.router);
  spec.router_loss_coefficient = ReadRouterLoss(config);
  const std::int64_t shared = config.CountOrZero("moe_num_shared_experts", 2);
  if (shared > 0) moe.shared = {{"mlp.shared_experts", moe.intermediate * shared, bias}};

  const DenseMlpSpec dense{"mlp", config.Count("intermediate_size", 12288), bias};
  const std::int64_t interval = config.Count("moe_layer_interval", 1);
  const std::int64_t first = config.CountOrZero("moe_layer_start_index", 1);
  const std::int64_t last_listed = config.Integer("moe_layer_end_index", -1);
  const std::int64_t last = last_listed == -1 ? layers - 1 : last_listed;
  LayerSpec layer;
  layer.attention = ReadAttention(config, spec, /*head_dim=*/0, bias);
  for (std::int64_t i = 0; i < layers; ++i) {
    if ((i + 1) % interval == 0 && i >= first && i <= last) {
      layer.feed_forward = moe;
    } else {
      layer.feed_forward = dense;
    }
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace offshoot::trainer
