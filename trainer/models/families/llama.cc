// Llama 2 and 3 and models of their shape (R1-Distill-Llama, SmolLM2).
#include "trainer/models/family.h"
#include "trainer/models/rotary.h"

namespace offshoot::trainer {

ArchSpec ReadLlama(ConfigReader& config) {
  ArchSpec spec = ReadCommon(config, 1e-6, false);
  SoftmaxAttentionSpec attention = ReadSoftmaxAttention(config);
  attention.query_key_value_bias = config.Flag("attention_bias", false);
  attention.output_bias = attention.query_key_value_bias;
  attention.rotary = AddRotary(spec, ReadRotary(config, {.head_dim = attention.head_dim}));
  const DenseMlpSpec mlp{"mlp", config.Count("intermediate_size"), config.Flag("mlp_bias", false)};
  LayerSpec layer;
  layer.attention = attention;
  layer.feed_forward = mlp;
  spec.layers.assign(static_cast<std::size_t>(config.Count("num_hidden_layers")), layer);
  return spec;
}

}  // namespace offshoot::trainer
