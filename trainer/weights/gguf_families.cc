// The table of gguf_architectures.h: what llama.cpp (src/models/, convert_hf_to_gguf.py) calls the
// tensors and settings of each family, and what its graphs take for granted.
#include <array>

#include "trainer/weights/gguf_architectures.h"
#include "trainer/weights/gguf_keys.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

template <std::size_t... kSizes>
constexpr auto Join(const std::array<GgufName, kSizes>&... parts) {
  std::array<GgufName, (kSizes + ...)> all{};
  std::size_t at = 0;
  const auto append = [&](const auto& part) {
    for (const GgufName& name : part) all[at++] = name;
  };
  (append(parts), ...);
  return all;
}

constexpr std::array<GgufName, 9> kBlockNames = {{
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"blk.%d.attn_norm", "model.layers.%d.input_layernorm"},
    {"blk.%d.attn_q", "model.layers.%d.self_attn.q_proj"},
    {"blk.%d.attn_k", "model.layers.%d.self_attn.k_proj"},
    {"blk.%d.attn_v", "model.layers.%d.self_attn.v_proj"},
    {"blk.%d.attn_output", "model.layers.%d.self_attn.o_proj"},
    {"blk.%d.ffn_norm", "model.layers.%d.post_attention_layernorm"},
}};
constexpr std::array<GgufName, 3> kDenseNames = {{
    {"blk.%d.ffn_gate", "model.layers.%d.mlp.gate_proj"},
    {"blk.%d.ffn_up", "model.layers.%d.mlp.up_proj"},
    {"blk.%d.ffn_down", "model.layers.%d.mlp.down_proj"},
}};
constexpr std::array<GgufName, 3> kExpertNames = {{
    {"blk.%d.ffn_gate_exps", "model.layers.%d.mlp.experts.%e.gate_proj"},
    {"blk.%d.ffn_up_exps", "model.layers.%d.mlp.experts.%e.up_proj"},
    {"blk.%d.ffn_down_exps", "model.layers.%d.mlp.experts.%e.down_proj"},
}};
constexpr std::array<GgufName, 2> kQwen3HeadNorms = {{
    {"blk.%d.attn_q_norm", "model.layers.%d.self_attn.q_norm"},
    {"blk.%d.attn_k_norm", "model.layers.%d.self_attn.k_norm"},
}};
constexpr std::array<GgufName, 1> kRouterName = {{
    {"blk.%d.ffn_gate_inp", "model.layers.%d.mlp.gate"},
}};
constexpr std::array<GgufName, 4> kErnieMoeOwnNames = {{
    {"blk.%d.exp_probs_b.bias", "model.layers.%d.mlp.moe_statics.e_score_correction_bias"},
    {"blk.%d.ffn_gate_shexp", "model.layers.%d.mlp.shared_experts.gate_proj"},
    {"blk.%d.ffn_up_shexp", "model.layers.%d.mlp.shared_experts.up_proj"},
    {"blk.%d.ffn_down_shexp", "model.layers.%d.mlp.shared_experts.down_proj"},
}};
constexpr std::array<GgufName, 2> kHunyuanHeadNorms = {{
    {"blk.%d.attn_q_norm", "model.layers.%d.self_attn.query_layernorm"},
    {"blk.%d.attn_k_norm", "model.layers.%d.self_attn.key_layernorm"},
}};
constexpr std::array<GgufName, 4> kHunyuanMoeOwnNames = {{
    {"blk.%d.ffn_gate_inp", "model.layers.%d.mlp.gate.wg"},
    {"blk.%d.ffn_gate_shexp", "model.layers.%d.mlp.shared_mlp.gate_proj"},
    {"blk.%d.ffn_up_shexp", "model.layers.%d.mlp.shared_mlp.up_proj"},
    {"blk.%d.ffn_down_shexp", "model.layers.%d.mlp.shared_mlp.down_proj"},
}};
constexpr std::array<GgufName, 12> kDeepseekOwnNames = {{
    {"blk.%d.attn_q_a", "model.layers.%d.self_attn.q_a_proj"},
    {"blk.%d.attn_q_a_norm", "model.layers.%d.self_attn.q_a_layernorm"},
    {"blk.%d.attn_q_b", "model.layers.%d.self_attn.q_b_proj"},
    {"blk.%d.attn_kv_a_mqa", "model.layers.%d.self_attn.kv_a_proj_with_mqa"},
    {"blk.%d.attn_kv_a_norm", "model.layers.%d.self_attn.kv_a_layernorm"},
    {"blk.%d.attn_kv_b", "model.layers.%d.self_attn.kv_b_proj"},  // of files made before the split
    {"blk.%d.attn_k_b", "model.layers.%d.self_attn.kv_b_proj"},
    {"blk.%d.attn_v_b", "model.layers.%d.self_attn.kv_b_proj"},
    {"blk.%d.exp_probs_b.bias", "model.layers.%d.mlp.gate.e_score_correction_bias"},
    {"blk.%d.ffn_gate_shexp", "model.layers.%d.mlp.shared_experts.gate_proj"},
    {"blk.%d.ffn_up_shexp", "model.layers.%d.mlp.shared_experts.up_proj"},
    {"blk.%d.ffn_down_shexp", "model.layers.%d.mlp.shared_experts.down_proj"},
}};

constexpr auto kLlamaNames = Join(kBlockNames, kDenseNames);
constexpr auto kQwen3Names = Join(kLlamaNames, kQwen3HeadNorms);
constexpr auto kQwen3MoeNames = Join(kBlockNames, kQwen3HeadNorms, kRouterName, kExpertNames);
constexpr auto kErnieMoeNames = Join(kLlamaNames, kRouterName, kExpertNames, kErnieMoeOwnNames);
constexpr auto kHunyuanNames = Join(kLlamaNames, kHunyuanHeadNorms);
constexpr auto kHunyuanMoeNames =
    Join(kBlockNames, kHunyuanHeadNorms, kExpertNames, kHunyuanMoeOwnNames);
constexpr auto kDeepseekNames = Join(kLlamaNames, kRouterName, kExpertNames, kDeepseekOwnNames);

void AddLlama(const GgufKeys& keys, Json& config) {
  config["attention_bias"] = keys.Tensor("blk.0.attn_q.bias") != nullptr;
  config["mlp_bias"] = keys.Tensor("blk.0.ffn_up.bias") != nullptr;
}

void AddQwen2(const GgufKeys&, Json& config) { config["use_sliding_window"] = false; }

void AddQwen3(const GgufKeys& keys, Json& config) {
  AddQwen2(keys, config);
  config["attention_bias"] = keys.Tensor("blk.0.attn_q.bias") != nullptr;
}

// llama.cpp's weights of the chosen experts always sum to one.
void AddQwen3Moe(const GgufKeys& keys, Json& config) {
  AddQwen3(keys, config);
  config["num_experts"] = keys.Needed("expert_count");
  config["num_experts_per_tok"] = keys.Needed("expert_used_count");
  config["moe_intermediate_size"] = keys.Needed("expert_feed_forward_length");
  config["norm_topk_prob"] = true;
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = Json::array();
}

void AddErnie(const GgufKeys&, Json& config) { config["use_bias"] = false; }

void AddErnieMoe(const GgufKeys& keys, Json& config) {
  AddErnie(keys, config);
  const std::int64_t width = keys.Needed("expert_feed_forward_length");
  const std::int64_t shared = keys.CountOrZero("expert_shared_feed_forward_length").value_or(0);
  if (shared % width != 0) {
    keys.Refuse("its shared experts are " + std::to_string(shared) +
                " wide, which is no multiple of an expert's " + std::to_string(width));
  }
  config["moe_num_experts"] = keys.Needed("expert_count");
  config["moe_k"] = keys.Needed("expert_used_count");
  config["moe_intermediate_size"] = width;
  config["moe_num_shared_experts"] = shared / width;
  config["moe_layer_start_index"] = keys.CountOrZero("leading_dense_block_count").value_or(0);
  config["moe_layer_end_index"] = -1;
  config["moe_layer_interval"] = keys.Needed("interleave_moe_layer_step");
}

void AddHunyuan(const GgufKeys&, Json& config) { config["attention_bias"] = false; }

// Shared and routed experts are of one width here.
void AddHunyuanMoe(const GgufKeys& keys, Json& config) {
  AddHunyuan(keys, config);
  const std::int64_t width = keys.Needed("feed_forward_length");
  for (const char* key : {"expert_feed_forward_length", "expert_shared_feed_forward_length"}) {
    if (keys.Integer(key).value_or(width) != width) {
      keys.Refuse("its key '" + keys.prefix() + key + "' differs from its feed_forward_length");
    }
  }
  config["num_experts"] = keys.Needed("expert_count");
  config["moe_topk"] = keys.Needed("expert_used_count");
}

// DeepSeek-V3, and Kimi K2, which is the same under another name. Of V2, whose routers score by
// softmax, nothing else is known here.
void AddDeepseek(const GgufKeys& keys, Json& config) {
  constexpr std::int64_t kSigmoid = 2;  // gguf.ExpertGatingFuncType
  if (keys.CountOrZero("expert_gating_func") != kSigmoid) {
    keys.Refuse("its routers do not score by sigmoid as DeepSeek-V3's do (expert_gating_func 2)");
  }
  const std::int64_t heads = config.at("num_attention_heads");
  const std::int64_t rotary = keys.Needed("rope.dimension_count");
  // Before the split of kv_b_proj the widths of a head had the names of others' heads.
  const bool split = keys.Find("attention.key_length_mla") != nullptr;
  const std::int64_t key = keys.Needed(split ? "attention.key_length_mla" : "attention.key_length");
  if (key <= rotary || rotary % 2 != 0) {
    keys.Refuse("its keys are " + std::to_string(key) + " wide, " + std::to_string(rotary) +
                " of it rotated, which is not understood");
  }
  config["num_key_value_heads"] = heads;
  const auto query_rank = keys.Integer("attention.q_lora_rank");
  config["q_lora_rank"] = query_rank ? Json(*query_rank) : Json();
  config["kv_lora_rank"] = keys.Needed("attention.kv_lora_rank");
  config["qk_rope_head_dim"] = rotary;
  config["qk_nope_head_dim"] = key - rotary;
  config["v_head_dim"] =
      keys.Needed(split ? "attention.value_length_mla" : "attention.value_length");
  config["attention_bias"] = false;
  config["rope_interleave"] = true;
  config["n_routed_experts"] = keys.Needed("expert_count");
  config["num_experts_per_tok"] = keys.Needed("expert_used_count");
  config["moe_intermediate_size"] = keys.Needed("expert_feed_forward_length");
  config["n_shared_experts"] = keys.CountOrZero("expert_shared_count").value_or(0);
  config["first_k_dense_replace"] = keys.CountOrZero("leading_dense_block_count").value_or(0);
  config["n_group"] = keys.Integer("expert_group_count").value_or(1);
  config["topk_group"] = keys.Integer("expert_group_used_count").value_or(1);
  const Json* normalised = keys.Find("expert_weights_norm");
  config["norm_topk_prob"] = normalised != nullptr && *normalised == true;
  config["routed_scaling_factor"] = keys.Number("expert_weights_scale").value_or(1.0);
  config["scoring_func"] = "sigmoid";
  config["topk_method"] = "noaux_tc";
}

constexpr std::array<GgufArchitecture, 11> kArchitectures = {{
    {.name = "llama",
     .model_type = "llama",
     .class_name = "LlamaForCausalLM",
     .names = kLlamaNames,
     .add_config = AddLlama,
     .has_biases = true,
     .permutes_query_and_key = true,
     .head_width_is_rope_width = true},
    {.name = "llama",
     .model_type = "mistral",
     .class_name = "MistralForCausalLM",
     .names = kLlamaNames,
     .add_config = AddLlama,
     .has_biases = true,
     .permutes_query_and_key = true,
     .head_width_is_rope_width = true},
    {.name = "qwen2",
     .model_type = "qwen2",
     .class_name = "Qwen2ForCausalLM",
     .names = kLlamaNames,
     .add_config = AddQwen2,
     .has_biases = true},
    {.name = "qwen3",
     .model_type = "qwen3",
     .class_name = "Qwen3ForCausalLM",
     .names = kQwen3Names,
     .add_config = AddQwen3,
     .has_biases = true},
    {.name = "qwen3moe",
     .model_type = "qwen3_moe",
     .class_name = "Qwen3MoeForCausalLM",
     .names = kQwen3MoeNames,
     .add_config = AddQwen3Moe,
     .experts = GgufExperts::kEveryLayer},
    // Ernie rotates neighbouring elements in both, Hunyuan halves: nothing is permuted.
    {.name = "ernie4_5",
     .model_type = "ernie4_5",
     .class_name = "Ernie4_5ForCausalLM",
     .names = kLlamaNames,
     .add_config = AddErnie},
    {.name = "ernie4_5-moe",
     .model_type = "ernie4_5_moe",
     .class_name = "Ernie4_5_MoeForCausalLM",
     .names = kErnieMoeNames,
     .add_config = AddErnieMoe,
     .experts = GgufExperts::kInterleaved,
     .correction_is_row = true},
    {.name = "hunyuan-dense",
     .model_type = "hunyuan_v1_dense",
     .class_name = "HunYuanDenseV1ForCausalLM",
     .names = kHunyuanNames,
     .add_config = AddHunyuan},
    {.name = "hunyuan-moe",
     .model_type = "hunyuan_v1_moe",
     .class_name = "HunYuanMoEV1ForCausalLM",
     .names = kHunyuanMoeNames,
     .add_config = AddHunyuanMoe,
     .experts = GgufExperts::kEveryLayer},
    {.name = "deepseek2",
     .model_type = "deepseek_v3",
     .class_name = "DeepseekV3ForCausalLM",
     .names = kDeepseekNames,
     .add_config = AddDeepseek,
     .experts = GgufExperts::kAfterDense,
     .routing = GgufRouting::kNamed,
     .latent_attention = true},
    {.name = "deepseek2",
     .model_type = "kimi_k2",
     .class_name = "DeepseekV3ForCausalLM",
     .names = kDeepseekNames,
     .add_config = AddDeepseek,
     .experts = GgufExperts::kAfterDense,
     .routing = GgufRouting::kNamed,
     .latent_attention = true},
}};

}  // namespace

std::span<const GgufArchitecture> GgufArchitectures() { return kArchitectures; }

}  // namespace offshoot::trainer
