// Qwen3 dense: no biases, RMS norm of each query and key head before the rotation.
#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {

SoftmaxAttentionSpec ReadQwen3Attention(ConfigReader& config, const ArchSpec& spec,
                                        std::int64_t head_dim) {
  SoftmaxAttentionSpec attention = ReadSoftmaxAttention(config, head_dim);
  attention.query_key_value_bias = config.Flag("attention_bias", false);
  attention.output_bias = attention.query_key_value_bias;
  attention.head_norm = HeadNorm::kBeforeRotary;
  attention.query_norm_name = "q_norm";
  attention.key_norm_name = "k_norm";
  attention.head_norm_epsilon = spec.norm_epsilon;
  return attention;
}

ArchSpec ReadQwen3(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-6, false);
  const std::int64_t layers = config.Count("num_hidden_layers");
  SoftmaxAttentionSpec attention = ReadQwen3Attention(config, spec, config.Count("head_dim", 128));
  const DenseMlpSpec mlp{"mlp", config.Count("intermediate_size"), false};
  for (const std::int64_t window : ReadSlidingWindows(config, layers)) {
    attention.window = window;
    const RotaryDefaults defaults{
        .head_dim = attention.head_dim,
        .layer_type = window > 0 ? "sliding_attention" : "full_attention"};
    attention.rotary = AddRotary(spec, ReadRotary(config, defaults));
    LayerSpec layer;
    layer.attention = attention;
    layer.feed_forward = mlp;
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace offshoot::trainer
