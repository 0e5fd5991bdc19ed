// The demo model's architecture, for tests of what is computed from shapes alone.
#pragma once

#include "trainer/models/arch_spec.h"

namespace offshoot::trainer {

// SmolLM2-135M-Instruct.
inline ArchSpec DemoModel() {
  ArchSpec arch;
  arch.vocab_size = 49152;
  arch.hidden_size = 576;
  for (int i = 0; i < 30; ++i) {
    LayerSpec layer;
    SoftmaxAttentionSpec attention;
    attention.heads = 9;
    attention.key_value_heads = 3;
    attention.head_dim = 64;
    layer.attention = attention;
    DenseMlpSpec mlp;
    mlp.intermediate = 1536;
    layer.feed_forward = mlp;
    arch.layers.push_back(layer);
  }
  return arch;
}

}  // namespace offshoot::trainer
