#include "trainer/lora/peft_config.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using nlohmann::json;

constexpr std::uintmax_t kLargestConfigBytes = 16 << 20;

class Reader {
 public:
  explicit Reader(const std::string& directory)
      : path_((std::filesystem::path(directory) / "adapter_config.json").string()) {
    std::error_code failure;
    const std::uintmax_t bytes = std::filesystem::file_size(path_, failure);
    if (failure) Fail("cannot be read; give a directory that PEFT saved an adapter to.");
    if (bytes > kLargestConfigBytes) Fail("is larger than 16 MiB; it is no adapter config.");
    std::ifstream file(path_, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    json_ = json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
    if (!json_.is_object()) Fail("is not a JSON object; save the adapter again.");
  }

  [[noreturn]] void Fail(const std::string& why) const {
    throw Error(Reason::kBadModel, path_ + " " + why);
  }
  const json& At(const char* key) const {
    static const json kNull;
    const auto found = json_.find(key);
    return found == json_.end() ? kNull : *found;
  }
  bool IsOn(const char* key) const {
    const json& value = At(key);
    return !(value.is_null() || value == false || value == "none" ||
             ((value.is_array() || value.is_object() || value.is_string()) && value.empty()));
  }
  double Number(const char* key, double fallback) const {
    const json& value = At(key);
    if (value.is_null()) return fallback;
    if (!value.is_number()) Fail("has a `" + std::string(key) + "` that is not a number.");
    return value.get<double>();
  }
  std::vector<std::string> Texts(const char* key) const {
    const json& value = At(key);
    if (value.is_string()) return {value.get<std::string>()};
    std::vector<std::string> result;
    if (value.is_null()) return result;
    if (!value.is_array()) Fail("has a `" + std::string(key) + "` that is no list of names.");
    for (const json& entry : value) {
      if (!entry.is_string())
        Fail("has a `" + std::string(key) + "` with an entry that is no text.");
      result.push_back(entry.get<std::string>());
    }
    return result;
  }
  template <typename T>
  std::map<std::string, T> Pattern(const char* key) const {
    std::map<std::string, T> result;
    const json& value = At(key);
    if (value.is_null()) return result;
    if (!value.is_object()) Fail("has a `" + std::string(key) + "` that is not an object.");
    for (const auto& [pattern, number] : value.items()) {
      if (!number.is_number())
        Fail("has a `" + std::string(key) + "` with a value that is no number.");
      result[pattern] = number.template get<T>();
    }
    return result;
  }

 private:
  std::string path_;
  json json_;
};

void RefuseUnsupported(const Reader& reader) {
  if (reader.At("peft_type") != "LORA") reader.Fail("is not of peft_type LORA.");
  for (const char* key :
       {"use_dora", "modules_to_save", "bias", "lora_bias", "trainable_token_indices",
        "layer_replication", "use_qalora", "use_bdlora", "fan_in_fan_out", "arrow_config",
        "alora_invocation_tokens", "kasa_config", "velora_config", "monteclora_config"}) {
    if (reader.IsOn(key)) {
      reader.Fail("sets `" + std::string(key) +
                  "`, which is not supported; save a plain LoRA adapter.");
    }
  }
  const json& start = reader.At("init_lora_weights");
  if (!start.is_string()) return;
  const std::string name = start;
  for (const char* changes_base : {"pissa", "olora", "corda", "loftq", "lora_ga"}) {
    if (name.starts_with(changes_base)) {
      reader.Fail("sets `init_lora_weights` to " + name +
                  ", whose adapter belongs to a changed base; convert it to plain LoRA.");
    }
  }
}

}  // namespace

PeftConfig ReadPeftConfig(const std::string& directory) {
  const Reader reader(directory);
  RefuseUnsupported(reader);
  PeftConfig config;
  const double r = reader.Number("r", 8);  // PEFT's defaults when a file does not say
  if (r < 1 || r > kLargestRank || std::floor(r) != r) {
    reader.Fail("has an `r` that is not a whole number from 1 to " + std::to_string(kLargestRank) +
                ".");
  }
  config.lora.r = static_cast<std::int64_t>(r);
  config.lora.alpha = reader.Number("lora_alpha", 8);
  config.lora.dropout = reader.Number("lora_dropout", 0.0);
  config.lora.use_rslora = reader.IsOn("use_rslora");
  config.lora.target_modules = reader.Texts("target_modules");
  config.lora.rank_pattern = reader.Pattern<std::int64_t>("rank_pattern");
  config.lora.alpha_pattern = reader.Pattern<double>("alpha_pattern");
  config.target_parameters = reader.Texts("target_parameters");
  config.narrowed = reader.IsOn("exclude_modules") || reader.IsOn("layers_to_transform");
  for (const auto& [pattern, rank] : config.lora.rank_pattern) {
    if (rank < 1 || rank > kLargestRank) {
      reader.Fail("has a `rank_pattern` for `" + pattern + "` that is out of range.");
    }
  }
  return config;
}

namespace {

// PEFT types alpha as an integer; a fraction stays one.
json AlphaValue(double alpha) {
  if (std::floor(alpha) == alpha && std::abs(alpha) < 1e15) {
    return static_cast<std::int64_t>(alpha);
  }
  return alpha;
}

}  // namespace

json MakePeftConfig(const LoraConfig& lora, const TargetNames& targets, const std::string& base_id,
                    const std::string& base_revision) {
  json alphas = json::object();
  for (const auto& [pattern, alpha] : lora.alpha_pattern) alphas[pattern] = AlphaValue(alpha);
  json config = {
      {"peft_type", "LORA"},
      {"task_type", "CAUSAL_LM"},
      {"auto_mapping", nullptr},
      {"base_model_name_or_path", base_id.empty() ? json() : json(base_id)},
      {"revision", base_revision.empty() ? json() : json(base_revision)},
      {"r", lora.r},
      {"lora_alpha", AlphaValue(lora.alpha)},
      {"lora_dropout", lora.dropout},
      {"bias", "none"},
      {"use_rslora", lora.use_rslora},
      {"use_dora", false},
      {"modules_to_save", nullptr},
      {"rank_pattern", lora.rank_pattern},
      {"alpha_pattern", alphas},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"layers_to_transform", nullptr},
      {"layers_pattern", nullptr},
  };
  if (targets.pattern.empty()) {
    config["target_modules"] = targets.names;
  } else {
    config["target_modules"] = targets.pattern;
  }
  if (!targets.parameters.empty()) config["target_parameters"] = targets.parameters;
  return config;
}

}  // namespace offshoot::trainer
