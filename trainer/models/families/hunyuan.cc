// Hunyuan V1, dense and MoE (A13B): norms of query and key heads after the rotation, a rope whose
// base is stretched by `alpha`; in the MoE model every layer has routed experts and a shared MLP.
#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {
namespace {

// Published configs describe switches that these models never use, and other parts of their suite.
void CheckSwitches(ConfigReader& config) {
  config.Require("norm_type", "rms");
  config.Require("use_qk_norm", true);
  config.Require("use_rotary_pos_emb", true);
  config.Require("use_cla", false);
  config.Require("use_mla", false);
  config.Require("mlp_bias", false);
  config.Require("position_embedding_xdrope", false);
  config.Ignore({"cla_share_factor",
                 "add_classification_head",
                 "class_num",
                 "dense_list",
                 "im_end_id",
                 "im_newline_id",
                 "im_start_id",
                 "image_token_id",
                 "mask_init_id",
                 "max_image_size",
                 "num_media_embeds",
                 "org_vocab_size",
                 "pad_id",
                 "pool_type",
                 "sep_id",
                 "skip_cls_token",
                 "text_end_id",
                 "text_start_id",
                 "video_end_id",
                 "video_start_id",
                 "vit_add_patchemb_bias",
                 "vit_input_resolution",
                 "vit_mapping_type",
                 "vit_norm_type",
                 "vit_patch",
                 "vit_path",
                 "vit_remove_prenorm",
                 "vit_token",
                 "vit_type",
                 "vit_used_rms_norm",
                 "vit_use_torch_attn",
                 "xdrope_section",
                 "anyres_pooling_size",
                 "anyres_vit_max_image_size",
                 "anyres_vit_two_views",
                 "q_lora_rank",
                 "kv_lora_rank",
                 "qk_nope_head_dim",
                 "qk_rope_head_dim",
                 "v_head_dim"});
}

// Per-layer counts may be one number or a list.
std::vector<std::int64_t> PerLayer(ConfigReader& config, const std::string& key,
                                   std::int64_t layers, std::int64_t fallback) {
  const nlohmann::json& value = config.At(key);
  if (!value.is_array()) {
    return std::vector<std::int64_t>(static_cast<std::size_t>(layers), config.Count(key, fallback));
  }
  const std::vector<std::int64_t> counts = config.Integers(key);
  if (static_cast<std::int64_t>(counts.size()) < layers) {
    config.Refuse(key, "has " + std::to_string(counts.size()) + " entries for " +
                           std::to_string(layers) + " layers.");
  }
  for (const std::int64_t count : counts) {
    if (count < 1) config.Refuse(key, "must hold numbers of at least 1.");
  }
  return counts;
}

}  // namespace

SoftmaxAttentionSpec ReadHunyuanAttention(ConfigReader& config, ArchSpec& spec) {
  CheckSwitches(config);
  const std::int64_t listed = config.CountOrZero("attention_head_dim", 0);
  SoftmaxAttentionSpec attention =
      ReadSoftmaxAttention(config, config.CountOrZero("head_dim", listed));
  attention.query_key_value_bias = config.Flag("attention_bias", false);
  attention.output_bias = attention.query_key_value_bias;
  attention.head_norm = HeadNorm::kAfterRotary;
  attention.query_norm_name = "query_layernorm";
  attention.key_norm_name = "key_layernorm";
  attention.head_norm_epsilon = spec.norm_epsilon;
  attention.rotary =
      AddRotary(spec, ReadRotary(config, {.head_dim = attention.head_dim, .alpha_scaling = true}));
  return attention;
}

ArchSpec ReadHunyuanDense(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-5, false);
  LayerSpec layer;
  layer.attention = ReadHunyuanAttention(config, spec);
  layer.feed_forward = DenseMlpSpec{"mlp", config.Count("intermediate_size"), false};
  spec.layers.assign(static_cast<std::size_t>(config.Count("num_hidden_layers")), layer);
  return spec;
}

ArchSpec ReadHunyuanMoe(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-5, false);
  const std::int64_t layers = config.Count("num_hidden_layers");
  config.Require("moe_layer_num_skipped", 0);
  config.Require("norm_topk_prob", true);
  config.Require("routed_scaling_factor", 1.0);
  config.Require("use_mixed_mlp_moe", true);
  // The reference gives shared and routed experts the same width, intermediate_size; it has no
  // auxiliary loss.
  config.Ignore({"moe_intermediate_size", "num_shared_expert", "output_router_logits",
                 "moe_drop_tokens", "moe_random_routing_dropped_token", "capacity_factor",
                 "group_limited_greedy", "n_group", "topk_group"});
  spec.mixture = true;
  MoeSpec moe;
  moe.experts_path = "mlp.experts";
  moe.intermediate = config.Count("intermediate_size");
  moe.router.weight_name = "mlp.gate.wg.weight";
  moe.router.float32_product = true;
  moe.shared = {{"mlp.shared_mlp", moe.intermediate, false}};
  const std::vector<std::int64_t> experts = PerLayer(config, "num_experts", layers, 1);
  const std::vector<std::int64_t> chosen = PerLayer(config, "moe_topk", layers, 1);
  LayerSpec layer;
  layer.attention = ReadHunyuanAttention(config, spec);
  for (std::size_t i = 0; i < static_cast<std::size_t>(layers); ++i) {
    moe.router.experts = experts[i];
    moe.router.chosen = chosen[i];
    CheckRouter(config, moe.router);
    layer.feed_forward = moe;
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace offshoot::trainer
