// The families: one file under families/ per model_type, with no forward code of its own. See
// docs/add-a-family.md for the recipe. Immutable; thread-safe.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/models/arch_spec.h"
#include "trainer/models/config_reader.h"

namespace offshoot::trainer {

struct Family {
  std::string model_type;
  // Throws Error(kBadModel) naming a key that is missing, wrong or not understood.
  ArchSpec (*read)(ConfigReader& config);
};

// Every family, sorted by model_type.
const std::vector<Family>& Families();

// config.json -> ArchSpec. Throws Error(kBadModel); for an unknown model_type with the list of
// those that are known.
ArchSpec ReadArchSpec(const nlohmann::json& config);

// ---- shared by the family files -------------------------------------------------------------

// vocab_size, hidden_size, rms_norm_eps, max_position_embeddings, tie_word_embeddings; refuses any
// hidden_act but silu and any dropout of the base but 0.
ArchSpec ReadCommon(ConfigReader& config, double norm_epsilon, bool tied_head);

// num_attention_heads, num_key_value_heads and head_dim (hidden / heads unless given, or
// `head_dim` if it is above 0) of a grouped-query attention at self_attn.
SoftmaxAttentionSpec ReadSoftmaxAttention(ConfigReader& config, std::int64_t head_dim = 0);

// "full_attention", "sliding_attention" or "linear_attention" for each layer from `layer_types`;
// empty if the config has none. Refuses other kinds and a list of the wrong length.
std::vector<std::string> ReadLayerTypes(ConfigReader& config, std::int64_t layers,
                                        const std::vector<std::string>& known);

// Qwen's sliding windows: `use_sliding_window`, `sliding_window`, `max_window_layers` and
// `layer_types` -> the window of each layer (0: none).
std::vector<std::int64_t> ReadSlidingWindows(ConfigReader& config, std::int64_t layers);

// Index of the rotary in spec.rotaries, added if it is not there yet.
int AddRotary(ArchSpec& spec, const RotarySpec& rotary);

// Qwen3's attention, without window and rotary: biases from `attention_bias`, norms of heads before
// the rotation. head_dim as for ReadSoftmaxAttention.
SoftmaxAttentionSpec ReadQwen3Attention(ConfigReader& config, const ArchSpec& spec,
                                        std::int64_t head_dim);

// Hunyuan's attention: norms of heads after the rotation, alpha-scaled rope.
SoftmaxAttentionSpec ReadHunyuanAttention(ConfigReader& config, ArchSpec& spec);

// Refuses a router that could not choose: more chosen than there are, groups that do not divide.
void CheckRouter(ConfigReader& config, const RouterSpec& router);
// router_aux_loss_coef if output_router_logits asks for the auxiliary loss, else 0.
double ReadRouterLoss(ConfigReader& config);
// Marks the tensors of multi-token prediction, stored as layers beyond the last, as not used.
void IgnoreExtraLayers(ArchSpec& spec, std::int64_t first, std::int64_t count);

ArchSpec ReadDeepseekV3(ConfigReader& config);
ArchSpec ReadErnie45(ConfigReader& config);
ArchSpec ReadErnie45Moe(ConfigReader& config);
ArchSpec ReadHunyuanDense(ConfigReader& config);
ArchSpec ReadHunyuanMoe(ConfigReader& config);
ArchSpec ReadLlama(ConfigReader& config);
ArchSpec ReadMinimax(ConfigReader& config);
ArchSpec ReadMistral(ConfigReader& config);
ArchSpec ReadQwen2(ConfigReader& config);
ArchSpec ReadQwen3(ConfigReader& config);
ArchSpec ReadQwen3Moe(ConfigReader& config);

}  // namespace offshoot::trainer
