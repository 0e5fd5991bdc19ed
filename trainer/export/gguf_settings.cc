#include "trainer/export/gguf_settings.h"

#include <algorithm>
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

void CheckRouting(const RouterSpec& router, GgufRouting routing) {
  constexpr double kSmallMinimum = 1e-4;
  if (routing == GgufRouting::kNamed) {
    if (router.score != RouterScore::kSigmoid || router.correction_name.empty() ||
        router.normalize_minimum > kSmallMinimum || router.normalize_addend > kSmallMinimum) {
      RefuseGguf("the base's routers choose experts in another way than its family's usual one");
    }
    return;
  }
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

// llama.cpp has experts in every layer, or in all but the first ones. (It reads Ernie's
// interleave_moe_layer_step, and then wants experts in the layers between as well.)
void PlaceExperts(GgufModel& model) {
  const std::vector<LayerSpec>& layers = model.spec->layers;
  const auto first = std::find_if(layers.begin(), layers.end(), HasExperts);
  model.leading_dense = first - layers.begin();
  const bool leads = model.architecture->experts != GgufExperts::kEveryLayer;
  if ((model.leading_dense > 0 && !leads) || !std::all_of(first, layers.end(), HasExperts)) {
    RefuseGguf("the base has experts in some layers and none in others");
  }
}

void DescribeExperts(GgufModel& model) {
  if (model.architecture->experts == GgufExperts::kNone) {
    if (model.moe) RefuseGguf("the base has layers of another kind than its family's usual ones");
    return;
  }
  if (!model.moe) RefuseGguf("the base is of a family with experts and has none");
  CheckRouting(model.moe->router, model.architecture->routing);
  if (model.architecture->latent_attention && model.moe->shared.empty()) {
    RefuseGguf("the base has no shared experts, and llama.cpp's graph of its family has");
  }
  PlaceExperts(model);
}

const RotarySpec& RotaryOf(const ArchSpec& spec, int rotary) {
  return spec.rotaries.at(static_cast<std::size_t>(rotary));
}

// llama.cpp knows models whose queries pass through no latent by their size alone
// (src/models/deepseek2.cpp): DeepSeek-V2-Lite, Moonlight, GigaChat3 and Kanana-2.
void CheckQueryLatent(const ArchSpec& spec, const LatentAttentionSpec& latent) {
  const std::size_t layers = spec.layers.size();
  const bool lite = layers == 26 || layers == 27 || (layers == 48 && spec.vocab_size == 128256);
  if (lite != (latent.query_rank == 0)) {
    RefuseGguf("llama.cpp takes a model of this family with " + std::to_string(layers) +
               " layers for one " + (lite ? "without" : "with") + " a latent of the queries");
  }
}

void DescribeRotary(GgufModel& model) {
  if (const auto* latent = std::get_if<LatentAttentionSpec>(&model.attention)) {
    CheckQueryLatent(*model.spec, *latent);
    model.rotary = RotaryOf(*model.spec, latent->rotary);
    if (model.rotary.pairing != RotaryPairing::kInterleaved) {
      RefuseGguf("the base rotates halves (rope_interleave: false)");
    }
    // The graph multiplies scores by more than it should for any other scaling.
    if (model.rotary.kind != RotaryKind::kDefault && model.rotary.kind != RotaryKind::kYarn) {
      RefuseGguf("the base scales its rotation, and not by YaRN");
    }
    return;
  }
  const auto& attention = std::get<SoftmaxAttentionSpec>(model.attention);
  model.rotary = RotaryOf(*model.spec, attention.rotary);
  if (model.rotary.width != attention.head_dim) RefuseGguf("the base rotates a part of each head");
}

// llama.cpp's YaRN multiplies sine and cosine by 1 + 0.1 ln(factor), those of latent attention by
// 1 and the scores by (1 + multiplier ln(factor))^2 instead, and its ramp has whole bounds.
// Returns the multiplier, 0 where there is none.
double YarnMultiplier(const GgufModel& model) {
  const RotarySpec& rotary = model.rotary;
  const double logarithm = std::log(rotary.factor);
  const auto* latent = std::get_if<LatentAttentionSpec>(&model.attention);
  const double magnitude = latent != nullptr ? 1.0 : 0.1 * logarithm + 1;
  if (!rotary.truncate || std::abs(rotary.attention_factor - magnitude) > 1e-6) {
    RefuseGguf("the base's YaRN scaling sets `truncate`, `mscale` or `attention_factor`");
  }
  if (latent == nullptr) return 0.0;
  const auto width = static_cast<double>(latent->plain_dim + latent->rotary_dim);
  const double multiplier = (std::sqrt(latent->scale * std::sqrt(width)) - 1) / logarithm;
  if (!(rotary.factor > 1) || !(multiplier > 1e-6)) {
    RefuseGguf("the base's YaRN scaling has no `mscale_all_dim`, or no factor above 1");
  }
  return multiplier;
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
      if (const double multiplier = YarnMultiplier(model); multiplier > 0) {
        metadata.Float32(prefix + "rope.scaling.yarn_log_multiplier",
                         static_cast<float>(multiplier));
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
    const auto* softmax = std::get_if<SoftmaxAttentionSpec>(&layer.attention);
    const bool usual = model.architecture->latent_attention
                           ? std::holds_alternative<LatentAttentionSpec>(layer.attention)
                           : softmax != nullptr && softmax->rotary >= 0 && softmax->window == 0;
    if (!usual) RefuseGguf("the base has layers of another kind than its family's usual ones");
    model.attention = layer.attention;
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
  DescribeRotary(model);
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
  if (const auto* softmax = std::get_if<SoftmaxAttentionSpec>(&model.attention)) {
    add("attention.head_count", softmax->heads);
    add("attention.head_count_kv", softmax->key_value_heads);
    add("attention.key_length", softmax->head_dim);
    add("attention.value_length", softmax->head_dim);
  } else {
    // llama.cpp keeps the latent itself as the one key and value of all heads.
    const auto& latent = std::get<LatentAttentionSpec>(model.attention);
    add("attention.head_count", latent.heads);
    add("attention.head_count_kv", 1);
    add("attention.key_length", latent.key_value_rank + latent.rotary_dim);
    add("attention.value_length", latent.key_value_rank);
    add("attention.key_length_mla", latent.plain_dim + latent.rotary_dim);
    add("attention.value_length_mla", latent.value_dim);
    add("attention.kv_lora_rank", latent.key_value_rank);
    if (latent.query_rank > 0) add("attention.q_lora_rank", latent.query_rank);
  }
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
    if (model.architecture->experts != GgufExperts::kEveryLayer) {
      add("leading_dense_block_count", model.leading_dense);
    }
    if (model.architecture->experts == GgufExperts::kInterleaved) {
      add("interleave_moe_layer_step", 1);
    }
    if (model.architecture->routing == GgufRouting::kNamed) {
      const RouterSpec& router = model.moe->router;
      add("expert_gating_func", 2);  // sigmoid, gguf.ExpertGatingFuncType
      add("expert_group_count", router.groups);
      add("expert_group_used_count", router.chosen_groups);
      metadata.Bool(prefix + "expert_weights_norm", router.normalize);
      metadata.Float32(prefix + "expert_weights_scale", static_cast<float>(router.scaling));
    }
  }
  metadata.Float32(prefix + "attention.layer_norm_rms_epsilon",
                   static_cast<float>(model.spec->norm_epsilon));
  AddRotary(model, prefix, metadata);
  return metadata;
}

}  // namespace offshoot::trainer
