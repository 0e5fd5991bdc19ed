// Qwen2, Qwen2.5 and R1-Distill-Qwen: biases on q, k and v; sliding windows in the upper layers.
#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {

ArchSpec ReadQwen2(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-6, false);
  const std::int64_t layers = config.Count("num_hidden_layers");
  SoftmaxAttentionSpec attention = ReadSoftmaxAttention(config);
  attention.query_key_value_bias = true;
  const DenseMlpSpec mlp{"mlp", config.Count("intermediate_size"), false};
  config.Require("use_mrope", false);
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
