#include "trainer/models/family.h"

#include <algorithm>
#include <cmath>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kMostLayers = 4096;

}  // namespace

const std::vector<Family>& Families() {
  static const std::vector<Family> kFamilies = {
      {"deepseek_v3", ReadDeepseekV3},
      {"ernie4_5", ReadErnie45},
      {"ernie4_5_moe", ReadErnie45Moe},
      {"hunyuan_v1_dense", ReadHunyuanDense},
      {"hunyuan_v1_moe", ReadHunyuanMoe},
      {"kimi_k2", ReadDeepseekV3},  // the same architecture under its own name
      {"llama", ReadLlama},
      {"minimax", ReadMinimax},
      {"minimax_m1", ReadMinimax},
      {"minimax_text_01", ReadMinimax},
      {"mistral", ReadMistral},
      {"qwen2", ReadQwen2},
      {"qwen3", ReadQwen3},
      {"qwen3_moe", ReadQwen3Moe},
  };
  return kFamilies;
}

ArchSpec ReadArchSpec(const nlohmann::json& config) {
  ConfigReader reader(config);
  std::string known;
  for (const Family& family : Families()) {
    if (family.model_type == reader.model_type()) {
      ArchSpec spec = family.read(reader);
      spec.model_type = family.model_type;
      reader.Finish();
      return spec;
    }
    known += (known.empty() ? "" : ", ") + family.model_type;
  }
  throw Error(Reason::kBadModel, reader.model_type().empty()
                                     ? "config.json has no `model_type`; known are " + known + "."
                                     : "The model_type `" + reader.model_type() +
                                           "` is not supported; known are " + known + ".");
}

ArchSpec ReadCommon(ConfigReader& config, double norm_epsilon, bool tied_head) {
  ArchSpec spec;
  spec.vocab_size = config.Count("vocab_size");
  spec.hidden_size = config.Count("hidden_size");
  spec.norm_epsilon = config.Number("rms_norm_eps", norm_epsilon);
  if (spec.norm_epsilon < 0.0) config.Refuse("rms_norm_eps", "must not be negative.");
  spec.context_length = config.CountOrZero("max_position_embeddings", 0);
  spec.tied_head = config.Flag("tie_word_embeddings", tied_head);
  config.Require("hidden_act", "silu");
  for (const char* key : {"attention_dropout", "hidden_dropout", "hidden_dropout_prob",
                          "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop"}) {
    if (config.Number(key, 0.0) != 0.0) {
      config.Refuse(key, "is not 0; dropout in the base model is not supported.");
    }
  }
  if (config.Count("num_hidden_layers") > kMostLayers) {
    config.Refuse("num_hidden_layers", "is above " + std::to_string(kMostLayers) + ".");
  }
  spec.ignored_tensors = {R"(model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq)"};
  return spec;
}

SoftmaxAttentionSpec ReadSoftmaxAttention(ConfigReader& config, std::int64_t head_dim) {
  SoftmaxAttentionSpec attention;
  attention.path = "self_attn";
  attention.heads = config.Count("num_attention_heads");
  attention.key_value_heads = config.Count("num_key_value_heads", attention.heads);
  if (attention.heads % attention.key_value_heads != 0) {
    config.Refuse("num_key_value_heads", "must divide num_attention_heads.");
  }
  if (head_dim == 0) {
    const std::int64_t hidden = config.Count("hidden_size");
    if (!config.Has("head_dim") && hidden % attention.heads != 0) {
      config.Refuse("hidden_size",
                    "must be a multiple of num_attention_heads, as there is no "
                    "head_dim.");
    }
    head_dim = config.Count("head_dim", std::max<std::int64_t>(hidden / attention.heads, 1));
  }
  attention.head_dim = head_dim;
  attention.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  return attention;
}

std::vector<std::string> ReadLayerTypes(ConfigReader& config, std::int64_t layers,
                                        const std::vector<std::string>& known) {
  std::vector<std::string> types = config.Texts("layer_types");
  if (types.empty()) return types;
  if (static_cast<std::int64_t>(types.size()) != layers) {
    config.Refuse("layer_types", "has " + std::to_string(types.size()) + " entries for " +
                                     std::to_string(layers) + " layers.");
  }
  for (const std::string& type : types) {
    if (std::find(known.begin(), known.end(), type) == known.end()) {
      config.Refuse("layer_types", "has the kind `" + type + "`, which is not supported here.");
    }
  }
  return types;
}

std::vector<std::int64_t> ReadSlidingWindows(ConfigReader& config, std::int64_t layers) {
  // sliding_window is a number in published files even where it is not used.
  const bool used = config.Flag("use_sliding_window", false);
  const std::int64_t window = config.CountOrZero("sliding_window", used ? 4096 : 0);
  const std::int64_t first = config.CountOrZero("max_window_layers", 28);
  const std::vector<std::string> types =
      ReadLayerTypes(config, layers, {"full_attention", "sliding_attention"});
  std::vector<std::int64_t> windows(static_cast<std::size_t>(layers), 0);
  for (std::int64_t i = 0; i < layers; ++i) {
    const auto index = static_cast<std::size_t>(i);
    const bool slides = types.empty() ? used && i >= first : types[index] == "sliding_attention";
    if (!slides) continue;
    if (!used || window < 1) {
      config.Refuse("layer_types",
                    "asks for sliding attention, but there is no sliding_window "
                    "with use_sliding_window.");
    }
    windows[index] = window;
  }
  return windows;
}

void CheckRouter(ConfigReader& config, const RouterSpec& router) {
  if (router.experts % router.groups != 0) {
    config.Refuse("n_group", "must divide the number of experts.");
  }
  const std::int64_t members = router.experts / router.groups;
  if (router.groups > 1 && members < 2) {
    config.Refuse("n_group",
                  "leaves groups of one expert, but groups are ranked by their best two.");
  }
  if (router.chosen_groups > router.groups) {
    config.Refuse("topk_group", "must not be above n_group.");
  }
  if (router.chosen > members * router.chosen_groups) {
    config.Refuse("num_experts_per_tok", "is above the number of experts to choose from.");
  }
}

double ReadRouterLoss(ConfigReader& config) {
  const double coefficient = config.Number("router_aux_loss_coef", 0.001);
  return config.Flag("output_router_logits", false) ? coefficient : 0.0;
}

void IgnoreExtraLayers(ArchSpec& spec, std::int64_t first, std::int64_t count) {
  for (std::int64_t i = first; i < first + count; ++i) {
    spec.ignored_tensors.push_back("model\\.layers\\." + std::to_string(i) + "\\..*");
  }
}

int AddRotary(ArchSpec& spec, const RotarySpec& rotary) {
  const auto found = std::find(spec.rotaries.begin(), spec.rotaries.end(), rotary);
  if (found != spec.rotaries.end()) return static_cast<int>(found - spec.rotaries.begin());
  spec.rotaries.push_back(rotary);
  return static_cast<int>(spec.rotaries.size()) - 1;
}

}  // namespace offshoot::trainer
