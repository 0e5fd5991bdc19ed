#include "trainer/weights/gguf_architectures.h"

#include <array>
#include <cstring>
#include <string_view>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::array<GgufName, 12> kLlamaNames = {{
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"blk.%d.attn_norm", "model.layers.%d.input_layernorm"},
    {"blk.%d.attn_q", "model.layers.%d.self_attn.q_proj"},
    {"blk.%d.attn_k", "model.layers.%d.self_attn.k_proj"},
    {"blk.%d.attn_v", "model.layers.%d.self_attn.v_proj"},
    {"blk.%d.attn_output", "model.layers.%d.self_attn.o_proj"},
    {"blk.%d.ffn_norm", "model.layers.%d.post_attention_layernorm"},
    {"blk.%d.ffn_gate", "model.layers.%d.mlp.gate_proj"},
    {"blk.%d.ffn_up", "model.layers.%d.mlp.up_proj"},
    {"blk.%d.ffn_down", "model.layers.%d.mlp.down_proj"},
}};

// Llama's, and norms of the heads of queries and keys.
constexpr auto kQwen3Names = [] {
  std::array<GgufName, kLlamaNames.size() + 2> names{};
  for (std::size_t i = 0; i < kLlamaNames.size(); ++i) names[i] = kLlamaNames[i];
  names[kLlamaNames.size()] = {"blk.%d.attn_q_norm", "model.layers.%d.self_attn.q_norm"};
  names[kLlamaNames.size() + 1] = {"blk.%d.attn_k_norm", "model.layers.%d.self_attn.k_norm"};
  return names;
}();

constexpr std::array<GgufArchitecture, 3> kArchitectures = {{
    {"llama", "llama", "LlamaForCausalLM", kLlamaNames, /*permutes_query_and_key=*/true,
     /*head_width_is_rope_width=*/true},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", kLlamaNames},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", kQwen3Names},
}};

// Splits "blk.12.attn_q" by the pattern "blk.%d.attn_q": the layer's digits, "" for a pattern
// without one, nullopt if it does not match.
std::optional<std::string_view> Match(std::string_view pattern, std::string_view text) {
  const std::size_t hole = pattern.find("%d");
  if (hole == std::string_view::npos) {
    return pattern == text ? std::optional<std::string_view>("") : std::nullopt;
  }
  const std::string_view front = pattern.substr(0, hole);
  const std::string_view back = pattern.substr(hole + 2);
  if (text.size() <= front.size() + back.size() || !text.starts_with(front) ||
      !text.ends_with(back)) {
    return std::nullopt;
  }
  const std::string_view digits =
      text.substr(front.size(), text.size() - front.size() - back.size());
  if (digits.find_first_not_of("0123456789") != std::string_view::npos) return std::nullopt;
  return digits;
}

std::string Fill(std::string_view pattern, std::string_view digits) {
  const std::size_t hole = pattern.find("%d");
  if (hole == std::string_view::npos) return std::string(pattern);
  return std::string(pattern.substr(0, hole)) + std::string(digits) +
         std::string(pattern.substr(hole + 2));
}

template <typename From, typename To>
std::optional<std::string> Translate(const GgufArchitecture& architecture, const std::string& name,
                                     From from, To to) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string::npos) return std::nullopt;
  const std::string_view stem = std::string_view(name).substr(0, dot);
  const std::string_view suffix = std::string_view(name).substr(dot);
  if (suffix != ".weight" && suffix != ".bias") return std::nullopt;
  for (const GgufName& pair : architecture.names) {
    if (const auto digits = Match(pair.*from, stem)) {
      return Fill(pair.*to, *digits) + std::string(suffix);
    }
  }
  return std::nullopt;
}

}  // namespace

const GgufArchitecture& FindGgufArchitecture(const nlohmann::json& metadata,
                                             const std::string& path) {
  const auto found = metadata.find("general.architecture");
  if (found == metadata.end() || !found->is_string()) {
    throw Error(Reason::kBadModel, path + ": its metadata has no general.architecture.");
  }
  std::string known;
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (*found == architecture.name) return architecture;
    known += (known.empty() ? "" : ", ") + std::string(architecture.name);
  }
  throw Error(Reason::kBadModel, path + ": GGUF files of the architecture '" +
                                     found->get<std::string>() + "' cannot be read; known are " +
                                     known + ". Give the Hugging Face directory instead.");
}

const GgufArchitecture* FindGgufArchitectureByModelType(const std::string& model_type) {
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (model_type == architecture.model_type) return &architecture;
  }
  return nullptr;
}

std::optional<std::string> HuggingFaceName(const GgufArchitecture& architecture,
                                           const std::string& gguf_name) {
  return Translate(architecture, gguf_name, &GgufName::gguf, &GgufName::hugging_face);
}

std::optional<std::string> GgufNameOf(const GgufArchitecture& architecture,
                                      const std::string& hugging_face_name) {
  return Translate(architecture, hugging_face_name, &GgufName::hugging_face, &GgufName::gguf);
}

std::int64_t UnpermutedRow(std::int64_t source, std::int64_t head_rows) {
  const std::int64_t head = source / head_rows;
  const std::int64_t within = source % head_rows;
  return head * head_rows + within % 2 * (head_rows / 2) + within / 2;
}

}  // namespace offshoot::trainer
