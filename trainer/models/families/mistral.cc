// Mistral: Llama's block with a sliding window in every layer, if the config has one.
#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {

ArchSpec ReadMistral(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-6, false);
  SoftmaxAttentionSpec attention = ReadSoftmaxAttention(config);
  // null means no window; an absent key means the class's default.
  attention.window =
      config.Contains("sliding_window") ? config.CountOrZero("sliding_window", 0) : 4096;
  attention.rotary = AddRotary(spec, ReadRotary(config, {.head_dim = attention.head_dim}));
  LayerSpec layer;
  layer.attention = attention;
  layer.feed_forward = DenseMlpSpec{"mlp", config.Count("intermediate_size"), false};
  spec.layers.assign(static_cast<std::size_t>(config.Count("num_hidden_layers")), layer);
  return spec;
}

}  // namespace offshoot::trainer
