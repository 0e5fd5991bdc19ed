// Rotary position embedding: from the keys of a config to a RotarySpec, and from a RotarySpec to
// the cosine and sine tables of a batch. Pure functions; thread-safe.
//
// The formulas are those of transformers' modeling_rope_utils.py (default, linear, dynamic, llama3,
// yarn) and of Hunyuan's alpha scaling; everything is computed in float32 from float32 frequencies
// as there, so that tables agree to the last bit or two.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/models/arch_spec.h"
#include "trainer/models/config_reader.h"

namespace offshoot::trainer {

struct RotaryDefaults {
  std::int64_t head_dim = 0;                  // the head the rotation acts on
  double theta = 10000.0;                     // if the config has no rope_theta
  std::string layer_type = "full_attention";  // the entry of a rope_parameters keyed by layer kind
  bool alpha_scaling = false;                 // "dynamic" with `alpha` means kNtkAlpha (Hunyuan)
};

// Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (older files), and
// `partial_rotary_factor`. Throws Error(kBadModel) naming the key for kinds that are not known and
// for keys that a kind needs.
RotarySpec ReadRotary(ConfigReader& config, const RotaryDefaults& defaults);

// `value` as yarn scales logits: 0.1 * mscale * ln(factor) + 1, or 1 if factor <= 1.
double YarnMagnitude(double factor, double mscale);
// The config's `mscale_all_dim` if its rope kind is yarn (DeepSeek's softmax scale needs it), else
// 0.
double ReadYarnMscaleAllDim(ConfigReader& config);

struct RotaryTables {
  at::Tensor cos, sin;  // float32 [T, width / 2], the attention factor in them
  RotaryPairing pairing = RotaryPairing::kHalfSplit;
};

// Frequencies for rows of at most `row_length` tokens (only kDynamic depends on it).
std::vector<float> RotaryFrequencies(const RotarySpec& spec, std::int64_t row_length);

// positions int64 [T]; row_offsets as in TokenBatch: with kDynamic each row is scaled by its own
// length, so that a packed row equals the row alone, unless row_length says otherwise.
RotaryTables MakeRotaryTables(const RotarySpec& spec, const at::Tensor& positions,
                              const std::vector<std::int64_t>& row_offsets,
                              std::int64_t row_length = 0);

}  // namespace offshoot::trainer
