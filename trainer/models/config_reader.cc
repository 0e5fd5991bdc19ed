#include "trainer/models/config_reader.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kLargestCount = std::int64_t{1} << 31;

// Keys that any model's config may carry and that do not change what the decoder computes.
constexpr std::array<std::string_view, 39> kHarmless = {"architectures",
                                                        "auto_map",
                                                        "bos_token_id",
                                                        "chunk_size_feed_forward",
                                                        "custom_pipelines",
                                                        "dtype",
                                                        "eos_token_id",
                                                        "ep_size",
                                                        "finetuning_task",
                                                        "id2label",
                                                        "initializer_range",
                                                        "is_decoder",
                                                        "is_encoder_decoder",
                                                        "is_llama_config",
                                                        "keys_to_ignore_at_inference",
                                                        "label2id",
                                                        "license",
                                                        "max_length",
                                                        "max_position_embeddings",
                                                        "model_type",
                                                        "name_or_path",
                                                        "output_attentions",
                                                        "output_hidden_states",
                                                        "pad_token_id",
                                                        "prefix",
                                                        "pretraining_tp",
                                                        "problem_type",
                                                        "quantization_config",  // trainer/weights
                                                        "return_dict",
                                                        "sep_token_id",
                                                        "task_specific_params",
                                                        "tokenizer_class",
                                                        "torch_dtype",
                                                        "torchscript",
                                                        "transformers.js_config",
                                                        "transformers_version",
                                                        "unsloth_fixed",
                                                        "use_cache",
                                                        "use_return_dict"};

bool IsHarmless(const std::string& key) {
  if (std::find(kHarmless.begin(), kHarmless.end(), key) != kHarmless.end()) return true;
  return key.starts_with("_") || key.ends_with("_token_id") || key.ends_with("_version");
}

// A feature that is switched off needs no understanding.
bool IsOff(const nlohmann::json& value) {
  return value.is_null() || value == false ||
         ((value.is_array() || value.is_object() || value.is_string()) && value.empty());
}

std::string Shown(const nlohmann::json& value) {
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

}  // namespace

ConfigReader::ConfigReader(const nlohmann::json& config) : config_(config) {
  if (!config.is_object()) {
    throw Error(Reason::kBadModel, "config.json is not a JSON object; give the model's own file.");
  }
  const auto type = config.find("model_type");
  if (type != config.end() && type->is_string()) model_type_ = *type;
}

void ConfigReader::Refuse(const std::string& key, const std::string& why) const {
  throw Error(Reason::kBadModel,
              "config.json of this " + model_type_ + " model: `" + key + "` " + why);
}

const nlohmann::json& ConfigReader::At(const std::string& key) {
  static const nlohmann::json kNull;
  seen_.insert(key);
  const auto found = config_.find(key);
  return found == config_.end() ? kNull : *found;
}

bool ConfigReader::Has(const std::string& key) { return !At(key).is_null(); }

std::int64_t ConfigReader::Integer(const std::string& key, std::int64_t fallback) {
  const nlohmann::json& value = At(key);
  if (value.is_null()) return fallback;
  // Some files write counts as 8.0.
  const double number = value.is_number() ? value.get<double>() : 0.5;
  if (std::floor(number) != number || std::abs(number) > static_cast<double>(kLargestCount)) {
    Refuse(key, "must be a whole number, but is " + Shown(value) + ".");
  }
  return static_cast<std::int64_t>(number);
}

std::int64_t ConfigReader::CountOrZero(const std::string& key, std::int64_t fallback) {
  const std::int64_t value = Integer(key, fallback);
  if (value < 0) Refuse(key, "must not be negative, but is " + std::to_string(value) + ".");
  return value;
}

std::int64_t ConfigReader::Count(const std::string& key, std::int64_t fallback) {
  const std::int64_t value = Integer(key, fallback);
  if (value < 1) Refuse(key, "must be at least 1, but is " + std::to_string(value) + ".");
  return value;
}

std::int64_t ConfigReader::Count(const std::string& key) {
  if (!Has(key)) Refuse(key, "is missing; the model cannot be built without it.");
  return Count(key, 0);
}

double ConfigReader::Number(const std::string& key, double fallback) {
  const nlohmann::json& value = At(key);
  if (value.is_null()) return fallback;
  if (!value.is_number() || !std::isfinite(value.get<double>())) {
    Refuse(key, "must be a number, but is " + Shown(value) + ".");
  }
  return value.get<double>();
}

bool ConfigReader::Flag(const std::string& key, bool fallback) {
  const nlohmann::json& value = At(key);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) Refuse(key, "must be true or false, but is " + Shown(value) + ".");
  return value.get<bool>();
}

std::string ConfigReader::Text(const std::string& key, const std::string& fallback) {
  const nlohmann::json& value = At(key);
  if (value.is_null()) return fallback;
  if (!value.is_string()) Refuse(key, "must be a text, but is " + Shown(value) + ".");
  return value.get<std::string>();
}

std::vector<std::string> ConfigReader::Texts(const std::string& key) {
  const nlohmann::json& value = At(key);
  if (value.is_null()) return {};
  if (!value.is_array()) Refuse(key, "must be a list of texts, but is " + Shown(value) + ".");
  std::vector<std::string> result;
  for (const nlohmann::json& entry : value) {
    if (!entry.is_string()) Refuse(key, "must hold texts only, but has " + Shown(entry) + ".");
    result.push_back(entry.get<std::string>());
  }
  return result;
}

std::vector<std::int64_t> ConfigReader::Integers(const std::string& key) {
  const nlohmann::json& value = At(key);
  if (value.is_null()) return {};
  if (!value.is_array()) Refuse(key, "must be a list of numbers, but is " + Shown(value) + ".");
  std::vector<std::int64_t> result;
  for (const nlohmann::json& entry : value) {
    if (!entry.is_number_integer()) {
      Refuse(key, "must hold whole numbers only, but has " + Shown(entry) + ".");
    }
    result.push_back(entry.get<std::int64_t>());
  }
  return result;
}

void ConfigReader::Require(const std::string& key, const nlohmann::json& value) {
  const nlohmann::json& found = At(key);
  if (found.is_null() || found == value) return;
  Refuse(key, "is " + Shown(found) + ", but only " + Shown(value) + " is supported.");
}

void ConfigReader::Ignore(const std::vector<std::string>& keys) {
  seen_.insert(keys.begin(), keys.end());
}

void ConfigReader::Finish() const {
  for (const auto& [key, value] : config_.items()) {
    if (seen_.contains(key) || IsHarmless(key) || IsOff(value)) continue;
    Refuse(key, "(" + Shown(value) +
                    ") is not understood and might change what the model computes; remove it if "
                    "it does not.");
  }
}

}  // namespace offshoot::trainer
