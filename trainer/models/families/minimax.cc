// MiniMax-Text-01 and M1: lightning attention mixed with softmax attention, experts in every layer,
// and a residual that is taken after the norm and scaled.
#include <cmath>

#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {
namespace {

// "linear_attention" or "full_attention" for each layer, in either spelling.
std::vector<std::string> ReadKinds(ConfigReader& config, std::int64_t layers) {
  std::vector<std::string> kinds =
      ReadLayerTypes(config, layers, {"full_attention", "linear_attention"});
  if (!kinds.empty()) {
    config.Ignore({"attn_type_list"});
    return kinds;
  }
  const std::vector<std::int64_t> listed = config.Integers("attn_type_list");
  if (!listed.empty() && static_cast<std::int64_t>(listed.size()) != layers) {
    config.Refuse("attn_type_list", "must have one entry per layer.");
  }
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::int64_t kind = listed.empty() ? (i + 1) % 2 : listed[static_cast<std::size_t>(i)];
    if (kind != 0 && kind != 1) {
      config.Refuse("attn_type_list", "may only hold 0 (lightning) and 1 (softmax).");
    }
    kinds.emplace_back(kind == 0 ? "linear_attention" : "full_attention");
  }
  return kinds;
}

// `newer` + "_alpha_factor" or "layernorm_" + `older` + "_alpha"; the same for beta.
ResidualSpec ReadResidual(ConfigReader& config, const std::string& newer,
                          const std::string& older) {
  ResidualSpec residual;
  residual.from_normed = true;
  residual.skip =
      config.Number(newer + "_alpha_factor", config.Number("layernorm_" + older + "_alpha", 1.0));
  residual.branch =
      config.Number(newer + "_beta_factor", config.Number("layernorm_" + older + "_beta", 1.0));
  return residual;
}

// 2^(-8h/heads) for h = 1..heads, less steep in later layers.
std::vector<double> Decays(std::int64_t heads, std::int64_t layer, std::int64_t layers) {
  const double factor =
      1.0 - static_cast<double>(layer) / (static_cast<double>(layers) - 1.0 + 1e-5) + 1e-5;
  std::vector<double> decays;
  for (std::int64_t h = 1; h <= heads; ++h) {
    decays.push_back(std::exp2(-8.0 * static_cast<double>(h) / static_cast<double>(heads)) *
                     factor);
  }
  return decays;
}

}  // namespace

ArchSpec ReadMinimax(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-5, false);
  const std::int64_t layers = config.Count("num_hidden_layers");
  config.Require("postnorm", true);
  config.Require("router_jitter_noise", 0.0);
  config.Require("shared_intermediate_size", 0);
  config.Ignore({"block_size", "shared_moe_mode"});
  // Tables that the reference saves with the weights and computes again.
  spec.ignored_tensors.emplace_back(
      R"(model\.layers\.\d+\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay))");

  SoftmaxAttentionSpec softmax = ReadSoftmaxAttention(config);
  softmax.window = config.CountOrZero("sliding_window", 0);
  // Published configs rotate only the first rotary_dim elements of a head.
  const std::int64_t rotary_dim = config.CountOrZero("rotary_dim", 0);
  if (rotary_dim > softmax.head_dim) config.Refuse("rotary_dim", "must not be above head_dim.");
  softmax.rotary = AddRotary(
      spec, ReadRotary(config, {.head_dim = rotary_dim > 0 ? rotary_dim : softmax.head_dim,
                                .theta = 1000000.0}));
  LightningAttentionSpec lightning;
  lightning.path = "self_attn";
  lightning.heads = softmax.heads;
  lightning.head_dim = softmax.head_dim;

  spec.mixture = true;
  MoeSpec moe;
  moe.experts_path = "block_sparse_moe.experts";
  moe.gate_name = "w1";
  moe.up_name = "w3";
  moe.down_name = "w2";
  moe.intermediate = config.Count("intermediate_size");
  moe.router.weight_name = "block_sparse_moe.gate.weight";
  moe.router.experts = config.Count("num_local_experts", 8);
  moe.router.chosen = config.Count("num_experts_per_tok", 2);
  CheckRouter(config, moe.router);
  spec.router_loss_coefficient = ReadRouterLoss(config);

  const ResidualSpec full = ReadResidual(config, "full_attn", "full_attention");
  const ResidualSpec linear = ReadResidual(config, "linear_attn", "linear_attention");
  LayerSpec layer;
  layer.feed_forward = moe;
  layer.feed_forward_residual = ReadResidual(config, "mlp", "mlp");
  const std::vector<std::string> kinds = ReadKinds(config, layers);
  for (std::int64_t i = 0; i < layers; ++i) {
    if (kinds[static_cast<std::size_t>(i)] == "linear_attention") {
      lightning.decay = Decays(lightning.heads, i, layers);
      layer.attention = lightning;
      layer.attention_residual = linear;
    } else {
      layer.attention = softmax;
      layer.attention_residual = full;
    }
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace offshoot::trainer
