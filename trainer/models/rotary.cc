#include "trainer/models/rotary.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/max.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace offshoot::trainer {
namespace {

using nlohmann::json;

// The object that holds the rope keys, and the path to it for messages.
struct RopeKeys {
  const json* object;
  std::string path;
};

bool IsKeyedByLayerKind(const json& value) {
  return value.is_object() && std::any_of(value.begin(), value.end(),
                                          [](const json& entry) { return entry.is_object(); });
}

RopeKeys FindRopeKeys(ConfigReader& config, const std::string& layer_type) {
  static const json kEmpty = json::object();
  config.Ignore({"rope_parameters", "rope_scaling", "rope_type"});
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json& value = config.At(key);
    if (value.is_null() || value.empty()) continue;
    if (!value.is_object()) config.Refuse(key, "must be an object or null.");
    if (!IsKeyedByLayerKind(value)) return {&value, key};
    const auto entry = value.find(layer_type);
    if (entry == value.end() || !entry->is_object()) {
      config.Refuse(key, "is given per kind of layer, but has no entry for `" + layer_type + "`.");
    }
    return {&*entry, std::string(key) + "." + layer_type};
  }
  return {&kEmpty, "rope_parameters"};
}

class RopeReader {
 public:
  RopeReader(ConfigReader& config, RopeKeys keys) : config_(config), keys_(std::move(keys)) {}

  bool Has(const char* key) const {
    const auto found = keys_.object->find(key);
    return found != keys_.object->end() && !found->is_null();
  }
  double Number(const char* key, double fallback) const {
    if (!Has(key)) return fallback;
    const json& value = keys_.object->at(key);
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      config_.Refuse(keys_.path + "." + key, "must be a number.");
    }
    return value.get<double>();
  }
  double Positive(const char* key) const {
    const double value = Number(key, 0.0);
    if (value <= 0.0) config_.Refuse(keys_.path + "." + key, "must be a number above 0.");
    return value;
  }
  bool Flag(const char* key, bool fallback) const {
    if (!Has(key)) return fallback;
    const json& value = keys_.object->at(key);
    if (!value.is_boolean()) config_.Refuse(keys_.path + "." + key, "must be true or false.");
    return value.get<bool>();
  }
  std::string Kind() const {
    for (const char* key : {"rope_type", "type"}) {
      if (!Has(key)) continue;
      const json& value = keys_.object->at(key);
      if (!value.is_string()) config_.Refuse(keys_.path + "." + key, "must be a text.");
      return value.get<std::string>();
    }
    return "default";
  }
  // Every key must be one that the kind uses; another would be silently without effect.
  void AllowOnly(std::vector<std::string> allowed) const {
    allowed.insert(allowed.end(), {"rope_type", "type", "rope_theta", "partial_rotary_factor"});
    for (const auto& [key, value] : keys_.object->items()) {
      if (value.is_null() || std::find(allowed.begin(), allowed.end(), key) != allowed.end()) {
        continue;
      }
      config_.Refuse(keys_.path + "." + key,
                     "is not a setting of the rope kind `" + Kind() + "` that is known here.");
    }
  }
  [[noreturn]] void RefuseKind(const std::string& kind) const {
    config_.Refuse(
        keys_.path + ".rope_type",
        "is `" + kind + "`, but only default, linear, dynamic, llama3 and yarn are supported.");
  }

 private:
  ConfigReader& config_;
  RopeKeys keys_;
};

void ReadYarn(ConfigReader& config, const RopeReader& keys, std::int64_t context,
              RotarySpec& spec) {
  keys.AllowOnly({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale",
                  "mscale_all_dim", "original_max_position_embeddings", "truncate", "finetuned",
                  "apply_yarn_scaling"});
  spec.kind = RotaryKind::kYarn;
  spec.original_context = static_cast<std::int64_t>(
      keys.Number("original_max_position_embeddings", static_cast<double>(context)));
  if (spec.original_context < 1) {
    config.Refuse("original_max_position_embeddings", "must be at least 1 for yarn.");
  }
  spec.factor = keys.Has("factor")
                    ? keys.Positive("factor")
                    : static_cast<double>(context) / static_cast<double>(spec.original_context);
  if (spec.factor <= 0.0) config.Refuse("max_position_embeddings", "is needed by yarn's factor.");
  const double mscale = keys.Number("mscale", 0.0);
  const double mscale_all_dim = keys.Number("mscale_all_dim", 0.0);
  if (keys.Has("attention_factor")) {
    spec.attention_factor = keys.Number("attention_factor", 1.0);
  } else if (mscale != 0.0 && mscale_all_dim != 0.0) {
    spec.attention_factor =
        YarnMagnitude(spec.factor, mscale) / YarnMagnitude(spec.factor, mscale_all_dim);
  } else {
    spec.attention_factor = YarnMagnitude(spec.factor, 1.0);
  }
  // 0 means "not given", as in the reference.
  const double fast = keys.Number("beta_fast", 0.0);
  const double slow = keys.Number("beta_slow", 0.0);
  spec.beta_fast = fast != 0.0 ? fast : 32.0;
  spec.beta_slow = slow != 0.0 ? slow : 1.0;
  spec.truncate = keys.Flag("truncate", true);
}

void ReadLlama3(const RopeReader& keys, std::int64_t context, RotarySpec& spec) {
  keys.AllowOnly(
      {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
  spec.kind = RotaryKind::kLlama3;
  spec.factor = keys.Positive("factor");
  spec.low_frequency_factor = keys.Positive("low_freq_factor");
  spec.high_frequency_factor = keys.Positive("high_freq_factor");
  spec.original_context =
      keys.Has("original_max_position_embeddings")
          ? static_cast<std::int64_t>(keys.Positive("original_max_position_embeddings"))
          : context;
}

std::vector<float> PlainFrequencies(double theta, std::int64_t width) {
  // As the reference: exponent and power in float32.
  std::vector<float> frequencies;
  for (std::int64_t i = 0; i < width / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(width);
    frequencies.push_back(1.0F / std::pow(static_cast<float>(theta), exponent));
  }
  return frequencies;
}

std::vector<float> Llama3Frequencies(const RotarySpec& spec) {
  std::vector<float> frequencies = PlainFrequencies(spec.theta, spec.width);
  const auto context = static_cast<double>(spec.original_context);
  const double low_wavelength = context / spec.low_frequency_factor;
  const double high_wavelength = context / spec.high_frequency_factor;
  for (float& f : frequencies) {
    const double wavelength = 2.0 * std::numbers::pi / f;
    if (wavelength < high_wavelength) continue;
    if (wavelength > low_wavelength) {
      f = static_cast<float>(f / spec.factor);
      continue;
    }
    const double smooth = (context / wavelength - spec.low_frequency_factor) /
                          (spec.high_frequency_factor - spec.low_frequency_factor);
    f = static_cast<float>((1.0 - smooth) * f / spec.factor + smooth * f);
  }
  return frequencies;
}

std::vector<float> YarnFrequencies(const RotarySpec& spec) {
  std::vector<float> frequencies = PlainFrequencies(spec.theta, spec.width);
  const auto width = static_cast<double>(spec.width);
  const auto dimension = [&](double rotations) {
    return width *
           std::log(static_cast<double>(spec.original_context) /
                    (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(spec.theta));
  };
  double low = dimension(spec.beta_fast);
  double high = dimension(spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, width - 1.0);
  if (low == high) high += 0.001;  // the reference's guard against a division by 0
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double f = frequencies[i];
    frequencies[i] = static_cast<float>(f / spec.factor * ramp + f * (1.0 - ramp));
  }
  return frequencies;
}

at::Tensor Angles(const at::Tensor& positions, const std::vector<float>& frequencies) {
  const at::Tensor f = at::tensor(frequencies).to(positions.device());
  return at::outer(positions.to(at::kFloat), f);
}

}  // namespace

double YarnMagnitude(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double ReadYarnMscaleAllDim(ConfigReader& config) {
  const RopeReader keys(config, FindRopeKeys(config, "full_attention"));
  return keys.Kind() == "yarn" ? keys.Number("mscale_all_dim", 0.0) : 0.0;
}

RotarySpec ReadRotary(ConfigReader& config, const RotaryDefaults& defaults) {
  const RopeReader keys(config, FindRopeKeys(config, defaults.layer_type));
  const std::int64_t context = config.CountOrZero("max_position_embeddings", 0);
  RotarySpec spec;
  const double theta = config.Number("rope_theta", defaults.theta);
  spec.theta = keys.Number("rope_theta", theta);
  if (spec.theta <= 0.0) config.Refuse("rope_theta", "must be above 0.");
  const double partial =
      keys.Number("partial_rotary_factor", config.Number("partial_rotary_factor", 1.0));
  if (partial <= 0.0 || partial > 1.0) {
    config.Refuse("partial_rotary_factor", "must be above 0 and at most 1.");
  }
  spec.width = static_cast<std::int64_t>(static_cast<double>(defaults.head_dim) * partial);
  if (spec.width < 2 || spec.width % 2 != 0) {
    config.Refuse("head_dim", "gives a rotary width of " + std::to_string(spec.width) +
                                  ", but it must be even and at least 2.");
  }
  const std::string kind = keys.Kind();
  if (kind == "default" || kind == "mrope_default") {
    if (kind != "default") keys.RefuseKind(kind);
    keys.AllowOnly({"original_max_position_embeddings", "factor", "alpha", "beta_fast", "beta_slow",
                    "mscale", "mscale_all_dim"});
  } else if (kind == "linear") {
    keys.AllowOnly({"factor"});
    spec.kind = RotaryKind::kLinear;
    spec.factor = keys.Positive("factor");
  } else if (kind == "dynamic" && defaults.alpha_scaling && keys.Number("alpha", 0.0) != 0.0) {
    // The other keys are in published files and have no effect in the reference either.
    keys.AllowOnly({"alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"});
    spec.kind = RotaryKind::kNtkAlpha;
    spec.alpha = keys.Positive("alpha");
  } else if (kind == "dynamic") {
    keys.AllowOnly({"factor", "original_max_position_embeddings"});
    spec.kind = RotaryKind::kDynamic;
    spec.factor = keys.Positive("factor");
    spec.original_context = context;
    if (context < 1) config.Refuse("max_position_embeddings", "is needed by dynamic rope.");
  } else if (kind == "llama3") {
    ReadLlama3(keys, context, spec);
  } else if (kind == "yarn") {
    ReadYarn(config, keys, context, spec);
  } else {
    keys.RefuseKind(kind);
  }
  if (spec.width == 2 &&
      (spec.kind == RotaryKind::kDynamic || spec.kind == RotaryKind::kNtkAlpha)) {
    config.Refuse("rope_scaling", "of kind dynamic needs a rotary width above 2.");
  }
  return spec;
}

std::vector<float> RotaryFrequencies(const RotarySpec& spec, std::int64_t row_length) {
  const auto width = static_cast<double>(spec.width);
  switch (spec.kind) {
    case RotaryKind::kDefault:
      return PlainFrequencies(spec.theta, spec.width);
    case RotaryKind::kLinear: {
      std::vector<float> frequencies = PlainFrequencies(spec.theta, spec.width);
      for (float& f : frequencies) f /= static_cast<float>(spec.factor);
      return frequencies;
    }
    case RotaryKind::kDynamic: {
      const auto context = static_cast<double>(spec.original_context);
      const double length = std::max(static_cast<double>(row_length), context);
      const double growth = spec.factor * length / context - (spec.factor - 1.0);
      return PlainFrequencies(spec.theta * std::pow(growth, width / (width - 2.0)), spec.width);
    }
    case RotaryKind::kNtkAlpha:
      return PlainFrequencies(spec.theta * std::pow(spec.alpha, width / (width - 2.0)), spec.width);
    case RotaryKind::kLlama3:
      return Llama3Frequencies(spec);
    case RotaryKind::kYarn:
      return YarnFrequencies(spec);
  }
  return {};
}

RotaryTables MakeRotaryTables(const RotarySpec& spec, const at::Tensor& positions,
                              const std::vector<std::int64_t>& row_offsets,
                              std::int64_t row_length) {
  at::Tensor angles;
  if (spec.kind == RotaryKind::kDynamic && row_length == 0) {
    std::vector<at::Tensor> rows;
    for (std::size_t r = 0; r + 1 < row_offsets.size(); ++r) {
      const at::Tensor row = positions.slice(0, row_offsets[r], row_offsets[r + 1]);
      if (row.size(0) == 0) continue;
      const std::int64_t length = row.max().item<std::int64_t>() + 1;
      rows.push_back(Angles(row, RotaryFrequencies(spec, length)));
    }
    angles = at::cat(rows);
  } else {
    angles = Angles(positions, RotaryFrequencies(spec, row_length));
  }
  RotaryTables tables{at::cos(angles), at::sin(angles), spec.pairing};
  if (spec.attention_factor != 1.0) {
    tables.cos.mul_(spec.attention_factor);
    tables.sin.mul_(spec.attention_factor);
  }
  return tables;
}

}  // namespace offshoot::trainer
