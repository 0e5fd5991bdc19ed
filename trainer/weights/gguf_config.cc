// MakeConfig and MakeGenerationConfig of gguf_architectures.h.
#include <cmath>
#include <cstring>
#include <numbers>

#include "trainer/error.h"
#include "trainer/weights/gguf_architectures.h"
#include "trainer/weights/gguf_keys.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

// Recognises the Llama 3 scaling in rope_freqs.weight: its largest divisor is the factor, and the
// rest of the divisors must then follow.
Json ScalingFromDivisors(const GgufKeys& keys, const GgufTensor& tensor, double theta,
                         std::int64_t head_width) {
  if (std::strcmp(tensor.type->name, "F32") != 0 ||
      tensor.shape != std::vector<std::int64_t>{head_width / 2}) {
    keys.Refuse("its rope_freqs.weight is not one F32 number for each of the " +
                std::to_string(head_width / 2) + " frequencies");
  }
  std::vector<float> divisors(static_cast<std::size_t>(head_width / 2));
  std::memcpy(divisors.data(), keys.file().file->data() + tensor.begin,
              divisors.size() * sizeof(float));
  Llama3Scaling scaling{.factor = divisors.back()};
  bool plain = true;
  bool matches = true;
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_width));
    const double wanted = Llama3Divisor(frequency, scaling);
    plain = plain && divisors[i] == 1.0f;
    matches = matches && std::abs(divisors[i] - wanted) <= 1e-4 * wanted;
  }
  if (plain) return nullptr;
  if (!matches || !std::isfinite(scaling.factor)) {
    keys.Refuse(
        "its rope_freqs.weight is not the Llama 3 scaling (low factor 1, high factor 4, 8192 "
        "original positions), and no other is understood; give the Hugging Face directory");
  }
  return {
      {"rope_type", "llama3"},
      {"factor", ShortestDouble(static_cast<float>(scaling.factor))},
      {"low_freq_factor", scaling.low_frequency_factor},
      {"high_freq_factor", scaling.high_frequency_factor},
      {"original_max_position_embeddings", static_cast<std::int64_t>(scaling.original_positions)}};
}

// latent: of latent attention, which YaRN scales by a key of its own.
Json ScalingFromKeys(const GgufKeys& keys, bool latent) {
  const Json* type = keys.Find("rope.scaling.type");
  if (type == nullptr || *type == "none") return nullptr;
  const auto factor = keys.Number("rope.scaling.factor");
  const auto original = keys.Integer("rope.scaling.original_context_length");
  const char* multiplier = "rope.scaling.yarn_log_multiplier";
  for (const char* key : {"rope.scaling.attn_factor", multiplier, "rope.scaling.yarn_attn_factor",
                          "rope.scaling.yarn_ext_factor"}) {
    if (keys.Find(key) != nullptr && !(latent && key == multiplier)) {
      keys.Refuse("its metadata key '" + keys.prefix() + key + "' is not understood");
    }
  }
  if (*type == "linear" && factor && !latent) return {{"rope_type", "linear"}, {"factor", *factor}};
  if (*type == "yarn" && factor && original) {
    Json scaling = {{"rope_type", "yarn"},
                    {"factor", *factor},
                    {"original_max_position_embeddings", *original}};
    if (const auto fast = keys.Number("rope.scaling.yarn_beta_fast")) scaling["beta_fast"] = *fast;
    if (const auto slow = keys.Number("rope.scaling.yarn_beta_slow")) scaling["beta_slow"] = *slow;
    if (latent) {
      const auto tenth = keys.Number(multiplier);
      if (!tenth) keys.Refuse("its metadata lacks the key '" + keys.prefix() + multiplier + "'");
      const double mscale = ShortestDouble(static_cast<float>(*tenth * 10));
      scaling["mscale"] = mscale;
      scaling["mscale_all_dim"] = mscale;
    }
    return scaling;
  }
  keys.Refuse("its rope scaling " + GgufKeys::Shown(*type) +
              " is not understood; give the Hugging Face "
              "directory");
}

std::int64_t HeadWidth(const GgufArchitecture& architecture, const GgufKeys& keys,
                       std::int64_t hidden, std::int64_t heads) {
  const auto key_width = keys.Integer("attention.key_length");
  const auto value_width = keys.Integer("attention.value_length");
  const auto rope_width = keys.Integer("rope.dimension_count");
  std::int64_t width = hidden / heads;
  if (key_width) {
    width = *key_width;
  } else if (architecture.head_width_is_rope_width && rope_width) {
    width = *rope_width;
  } else if (hidden % heads != 0) {
    keys.Refuse("its embedding length " + std::to_string(hidden) + " is not a multiple of its " +
                std::to_string(heads) + " heads");
  }
  if ((value_width && *value_width != width) || (rope_width && *rope_width != width) ||
      width % 2 != 0) {
    keys.Refuse("its heads are " + std::to_string(width) +
                " wide, and rope or values have another "
                "width, which is not understood");
  }
  return width;
}

void RefuseExperts(const GgufArchitecture& architecture, const GgufKeys& keys) {
  if (architecture.experts != GgufExperts::kNone) return;
  const Json* experts = keys.Find("expert_count");
  if (experts != nullptr && *experts != 0) {
    keys.Refuse("it is a mixture of " + GgufKeys::Shown(*experts) +
                " experts, which this architecture "
                "cannot have here; give the Hugging Face directory");
  }
}

}  // namespace

double ShortestDouble(float value) {
  char text[32];
  for (int digits = 1; digits <= 9; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(value));
    if (std::strtof(text, nullptr) == value) return std::strtod(text, nullptr);
  }
  return value;
}

double Llama3Divisor(double frequency, const Llama3Scaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength < scaling.original_positions / scaling.high_frequency_factor) return 1;
  if (wavelength > scaling.original_positions / scaling.low_frequency_factor) return scaling.factor;
  const double smooth = (scaling.original_positions / wavelength - scaling.low_frequency_factor) /
                        (scaling.high_frequency_factor - scaling.low_frequency_factor);
  return 1 / ((1 - smooth) / scaling.factor + smooth);
}

Json MakeConfig(const GgufArchitecture& architecture, const GgufFile& file) {
  const GgufKeys keys(architecture, file);
  RefuseExperts(architecture, keys);
  const std::int64_t hidden = keys.Needed("embedding_length");
  const std::int64_t heads = keys.Needed("attention.head_count");
  const bool latent = architecture.latent_attention;
  const double theta = keys.Number("rope.freq_base").value_or(10000.0);
  const GgufTensor* embedding = keys.Tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    keys.Refuse("it has no matrix token_embd.weight");
  }
  const auto epsilon = keys.Number("attention.layer_norm_rms_epsilon");
  if (!epsilon) {
    keys.Refuse("its metadata lacks the key '" + keys.prefix() +
                "attention.layer_norm_rms_epsilon'");
  }
  Json config = {
      {"architectures", {architecture.class_name}},
      {"model_type", architecture.model_type},
      {"hidden_act", "silu"},
      {"hidden_size", hidden},
      {"intermediate_size", keys.Needed("feed_forward_length")},
      {"num_hidden_layers", keys.Needed("block_count")},
      {"num_attention_heads", heads},
      {"max_position_embeddings", keys.Needed("context_length")},
      {"rms_norm_eps", *epsilon},
      {"rope_theta", theta},
      {"vocab_size", embedding->shape[0]},
      {"tie_word_embeddings", keys.Tensor("output.weight") == nullptr},
      {"attention_dropout", 0.0},
  };
  if (!latent) {
    config["num_key_value_heads"] = keys.Integer("attention.head_count_kv").value_or(heads);
    config["head_dim"] = HeadWidth(architecture, keys, hidden, heads);
  }
  architecture.add_config(keys, config);
  const GgufTensor* divisors = latent ? nullptr : keys.Tensor("rope_freqs.weight");
  Json scaling = divisors != nullptr
                     ? ScalingFromDivisors(keys, *divisors, theta, config["head_dim"])
                     : ScalingFromKeys(keys, latent);
  if (!scaling.is_null()) config["rope_scaling"] = std::move(scaling);
  config.update(MakeGenerationConfig(file.layout.metadata));
  return config;
}

Json MakeGenerationConfig(const Json& metadata) {
  Json config = Json::object();
  constexpr std::pair<const char*, const char*> kIds[] = {
      {"tokenizer.ggml.bos_token_id", "bos_token_id"},
      {"tokenizer.ggml.eos_token_id", "eos_token_id"},
      {"tokenizer.ggml.padding_token_id", "pad_token_id"},
  };
  for (const auto& [key, name] : kIds) {
    const auto found = metadata.find(key);
    if (found != metadata.end() && found->is_number_unsigned()) config[name] = *found;
  }
  return config;
}

}  // namespace offshoot::trainer
