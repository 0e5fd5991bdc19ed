#include "trainer/export/gguf_settings.h"

#include <cmath>
#include <map>
#include <variant>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

bool SameExperts(const MoeSpec& a, const MoeSpec& b) {
  return a.intermediate == b.intermediate && a.router.experts == b.router.experts &&
         a.router.chosen == b.router.chosen && a.shared.size() == b.shared.size() &&
         (a.shared.empty() || a.shared[0].intermediate == b.shared[0].intermediate);
}

// llama.cpp takes the softmax over all experts and makes the weights of the chosen sum to one.
void CheckRouting(const RouterSpec& router) {
  constexpr double kSmallMinimum = 1e-4;
  if (router.score != RouterScore::kSoftmax || router.groups != 1 || router.scaling != 1.0) {
    RefuseGguf("the base's routers choose experts in another way than its family's usual one");
  }
  if (!router.normalize || router.normalize_addend != 0.0 ||
      router.normalize_minimum > kSmallMinimum) {
    RefuseGguf("the base's expert weights need not sum to 1 as llama.cpp's do (norm_topk_prob)");
  }
}

bool HasExperts(const LayerSpec& layer) {
  return std::holds_alternative<MoeSpec>(layer.feed_forward);
}

// Finds the pattern of layers with experts that the architecture can say.
void PlaceExperts(GgufModel& model) {
  const auto layers = static_cast<std::int64_t>(model.spec->layers.size());
  const auto matches = [&](std::int64_t lead, std::int64_t step) {
    for (std::int64_t i = 0; i < layers; ++i) {
      const bool wanted = i >= lead && (i + 1) % step == 0;
      if (HasExperts(model.spec->layers[static_cast<std::size_t>(i)]) != wanted) return false;
    }
    return true;
  };
  const bool free = model.architecture->experts == GgufExperts::kInterleaved;
  for (std::int64_t step = 1; step <= (free ? layers : 1); ++step) {
    for (std::int64_t lead = 0; lead < (free ? layers : 1); ++lead) {
      if (!matches(lead, step)) continue;
      model.leading_dense = lead;
      model.expert_step = step;
      return;
    }
  }
  RefuseGguf("the base has experts in some layers and none in others");
}

void DescribeExperts(GgufModel& model) {
  if (model.architecture->experts == GgufExperts::kNone) {
    if (model.moe) RefuseGguf("the base has layers of another kind than its family's usual ones");
    return;
  }
  if (!model.moe) RefuseGguf("the base is of a family with experts and has none");
  CheckRouting(model.moe->router);
  PlaceExperts(model);
}

void AddRotary(const GgufModel& model, const std::string& prefix, GgufMetadata& metadata) {
  const RotarySpec& rotary = model.rotary;
  const auto width = static_cast<double>(rotary.width);
  const double theta = rotary.kind == RotaryKind::kNtkAlpha
                           ? rotary.theta * std::pow(rotary.alpha, width / (width - 2))
                           : rotary.theta;
  metadata.Float32(prefix + "rope.freq_base", static_cast<float>(theta));
  metadata.Uint32(prefix + "rope.dimension_count", static_cast<std::uint32_t>(rotary.width));
  switch (rotary.kind) {
    case RotaryKind::kDefault:
    case RotaryKind::kNtkAlpha:
    case RotaryKind::kLlama3:  // rope_freqs.weight has it
      return;
    case RotaryKind::kLinear:
      metadata.Text(prefix + "rope.scaling.type", "linear");
      metadata.Float32(prefix + "rope.scaling.factor", static_cast<float>(rotary.factor));
      return;
    case RotaryKind::kYarn:
      // llama.cpp's ramp has whole bounds, and its attention factor follows from the factor.
      if (!rotary.truncate ||
          std::abs(rotary.attention_factor - (0.1 * std::log(rotary.factor) + 1)) > 1e-6) {
        RefuseGguf("the base's YaRN scaling sets `truncate`, `mscale` or `attention_factor`");
      }
      metadata.Text(prefix + "rope.scaling.type", "yarn");
      metadata.Float32(prefix + "rope.scaling.factor", static_cast<float>(rotary.factor));
      metadata.Uint32(prefix + "rope.scaling.original_context_length",
                      static_cast<std::uint32_t>(rotary.original_context));
      metadata.Float32(prefix + "rope.scaling.yarn_beta_fast",
                       static_cast<float>(rotary.beta_fast));
      metadata.Float32(prefix + "rope.scaling.yarn_beta_slow",
                       static_cast<float>(rotary.beta_slow));
      return;
    case RotaryKind::kDynamic:
      break;
  }
  RefuseGguf("the base scales its rotation with the length of the text");
}

std::int64_t FeedForwardLength(const GgufModel& model, const BaseModelFiles& base) {
  if (model.dense) return model.dense->intermediate;
  // No layer has it; llama.cpp's own converter writes what config.json says.
  const auto found = base.config.find("intermediate_size");
  return found != base.config.end() && found->is_number_integer() ? found->get<std::int64_t>()
                                                                  : model.moe->intermediate;
}

}  // namespace

[[noreturn]] void RefuseGguf(const std::string& fault) {
  throw Error(Reason::kBadModel, fault +
                                     ", which cannot be written as GGUF here; publish the merged "
                                     "model instead.");
}

GgufModel DescribeForGguf(const ArchSpec& spec) {
  GgufModel model;
  model.spec = &spec;
  model.architecture = FindGgufArchitectureByModelType(spec.model_type);
  if (model.architecture == nullptr) {
    RefuseGguf("the base is of the type '" + spec.model_type + "' (GGUF is written of " +
               GgufModelTypes() + ")");
  }
  for (const LayerSpec& layer : spec.layers) {
    const auto* attention = std::get_if<SoftmaxAttentionSpec>(&layer.attention);
    if (attention == nullptr || attention->rotary < 0 || attention->window != 0) {
      RefuseGguf("the base has layers of another kind than its family's usual ones");
    }
    model.attention = *attention;
    if (const auto* moe = std::get_if<MoeSpec>(&layer.feed_forward)) {
      if (model.moe && !SameExperts(*model.moe, *moe)) {
        RefuseGguf("the base has other experts, or chooses another number of them, layer by layer");
      }
      model.moe = *moe;
    } else {
      model.dense = std::get<DenseMlpSpec>(layer.feed_forward);
    }
  }
  DescribeExperts(model);
  model.rotary = spec.rotaries.at(static_cast<std::size_t>(model.attention.rotary));
  if (model.rotary.width != model.attention.head_dim) {
    RefuseGguf("the base rotates a part of each head");
  }
  return model;
}

std::uint32_t GgufFileType(const std::string& type) {
  const std::map<std::string, std::uint32_t> types = {
      {"F32", 0}, {"F16", 1}, {"Q8_0", 7}, {"BF16", 32}};
  const auto found = types.find(type);
  if (found == types.end()) {
    throw Error(Reason::kBadSpec,
                "a GGUF file can be written as F32, F16, BF16 or Q8_0, not as " + type + ".");
  }
  return found->second;
}

GgufMetadata GgufSettings(const GgufModel& model, const BaseModelFiles& base,
                          const std::string& type, const std::string& name) {
  const std::string prefix = std::string(model.architecture->name) + ".";
  GgufMetadata metadata;
  metadata.Text("general.architecture", model.architecture->name);
  metadata.Text("general.name", name);
  metadata.Uint32("general.file_type", GgufFileType(type));
  metadata.Uint32("general.quantization_version", 2);
  for (const char* key : {"general.license", "general.license.name", "general.license.link"}) {
    if (base.is_gguf && base.gguf_metadata.contains(key)) {
      metadata.Value(key, base.gguf_metadata[key]);
    }
  }
  const auto add = [&](const char* key, std::int64_t value) {
    metadata.Uint32(prefix + key, static_cast<std::uint32_t>(value));
  };
  add("block_count", static_cast<std::int64_t>(model.spec->layers.size()));
  add("context_length", model.spec->context_length);
  add("embedding_length", model.spec->hidden_size);
  add("feed_forward_length", FeedForwardLength(model, base));
  add("attention.head_count", model.attention.heads);
  add("attention.head_count_kv", model.attention.key_value_heads);
  add("attention.key_length", model.attention.head_dim);
  add("attention.value_length", model.attention.head_dim);
  add("vocab_size", model.spec->vocab_size);
  if (model.moe) {
    add("expert_count", model.moe->router.experts);
    add("expert_used_count", model.moe->router.chosen);
    add("expert_feed_forward_length", model.moe->intermediate);
    if (!model.moe->shared.empty()) {
      const std::int64_t shared = model.moe->shared[0].intermediate;
      add("expert_shared_count", shared / model.moe->intermediate);
      add("expert_shared_feed_forward_length", shared);
    }
    if (model.architecture->experts == GgufExperts::kInterleaved) {
      add("leading_dense_block_count", model.leading_dense);
      add("interleave_moe_layer_step", model.expert_step);
    }
  }
  metadata.Float32(prefix + "attention.layer_norm_rms_epsilon",
                   static_cast<float>(model.spec->norm_epsilon));
  AddRotary(model, prefix, metadata);
  return metadata;
}

}  // namespace offshoot::trainer
