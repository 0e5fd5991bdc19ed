#include "cli/loader_check.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace offshoot::cli {
namespace {

using Json = nlohmann::json;

constexpr int kVllmDefaultRank = 16;
constexpr int kVllmHighestRank = 512;
constexpr char kWantMerged[] = "publish it with formats: [adapter, merged]";
// Names of transformers' model types that the others know under an architecture of their own.
constexpr const char* kLlamaCppTypes[] = {
    "llama",        "mistral",          "qwen2",         "qwen3",
    "qwen3_moe",    "deepseek_v3",      "kimi_k2",       "ernie4_5",
    "ernie4_5_moe", "hunyuan_v1_dense", "hunyuan_v1_moe"};
constexpr const char* kMlxTypes[] = {"llama",        "mistral",     "qwen2",           "qwen3",
                                     "qwen3_moe",    "deepseek_v3", "kimi_k2",         "ernie4_5",
                                     "ernie4_5_moe", "minimax",     "hunyuan_v1_dense"};

// What the adapter asks of a loader beyond plain LoRA.
struct Adapter {
  bool there = false;
  std::string fault;  // why it is no adapter at all
  int rank = 8;       // PEFT's own defaults
  bool dora = false;
  bool rslora = false;
  bool patterns = false;
  bool saves_modules = false;
  bool bias = false;
  bool parameters = false;  // target_parameters, or tensors of fused experts
  bool experts = false;
};

const Json& Field(const Json& object, const char* key) {
  static const Json none;
  const auto found = object.find(key);
  return found == object.end() ? none : *found;
}

bool IsOn(const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  return !value.is_null() && !value.empty();
}

bool Has(const LoadableDerivative& derivative, const std::string& path) {
  return std::find(derivative.paths.begin(), derivative.paths.end(), path) !=
         derivative.paths.end();
}

std::vector<std::string> GgufFiles(const LoadableDerivative& derivative) {
  std::vector<std::string> files;
  for (const std::string& path : derivative.paths) {
    if (absl::EndsWith(path, ".gguf")) files.push_back(path);
  }
  return files;
}

Adapter ReadAdapter(const LoadableDerivative& derivative) {
  Adapter adapter;
  const Json config = Json::parse(derivative.adapter_config, nullptr, false);
  if (!Has(derivative, "adapter_model.safetensors")) {
    adapter.fault = "there is no adapter_model.safetensors";
  } else if (!config.is_object() || Field(config, "peft_type") != "LORA") {
    adapter.fault = "adapter_config.json describes no LoRA adapter";
  } else if (const Json& rank = Field(config, "r"); rank.is_number_integer()) {
    adapter.rank = rank.get<int>();
  }
  if (!adapter.fault.empty()) return adapter;
  adapter.there = true;
  const Json& bias = Field(config, "bias");
  adapter.bias = IsOn(Field(config, "lora_bias")) || (bias.is_string() && bias != "none");
  adapter.dora = IsOn(Field(config, "use_dora"));
  adapter.rslora = IsOn(Field(config, "use_rslora"));
  adapter.patterns = IsOn(Field(config, "rank_pattern")) || IsOn(Field(config, "alpha_pattern"));
  adapter.saves_modules = IsOn(Field(config, "modules_to_save"));
  adapter.parameters = IsOn(Field(config, "target_parameters"));
  for (const std::string& tensor : derivative.adapter_tensors) {
    adapter.experts = adapter.experts || absl::StrContains(tensor, ".experts.");
    adapter.dora = adapter.dora || absl::StrContains(tensor, "lora_magnitude_vector");
  }
  return adapter;
}

std::string ModelType(const LoadableDerivative& derivative) {
  const Json config = Json::parse(derivative.merged_config, nullptr, false);
  const Json& type = config.is_object() ? Field(config, "model_type") : config;
  return type.is_string() ? type.get<std::string>() : "";
}

template <std::size_t N>
bool IsOneOf(const std::string& text, const char* const (&list)[N]) {
  return std::find(std::begin(list), std::end(list), text) != std::end(list);
}

bool HasMerged(const LoadableDerivative& derivative) {
  return Has(derivative, "merged/config.json") &&
         (Has(derivative, "merged/model.safetensors") ||
          Has(derivative, "merged/model.safetensors.index.json"));
}

LoaderVerdict CheckPeft(const Adapter& adapter) {
  if (!adapter.there) return {"PEFT", false, adapter.fault};
  return {"PEFT", true,
          adapter.parameters
              ? "PeftModel.from_pretrained; needs peft 0.17 or newer (target_parameters)"
              : "PeftModel.from_pretrained"};
}

LoaderVerdict CheckTransformers(const LoadableDerivative& derivative, const Adapter& adapter) {
  if (HasMerged(derivative)) {
    return {"transformers", true, "AutoModelForCausalLM.from_pretrained of merged/"};
  }
  if (adapter.there) return {"transformers", true, "model.load_adapter beside the base, with peft"};
  return {"transformers", false, absl::StrCat("no merged model; ", kWantMerged)};
}

// What vLLM's LoRA loader says no to, or silently leaves out.
std::vector<std::string> VllmObjections(const Adapter& adapter) {
  std::vector<std::string> objections;
  if (!adapter.there) objections.push_back(adapter.fault);
  if (adapter.dora) objections.push_back("use_dora is refused");
  if (adapter.saves_modules) objections.push_back("modules_to_save is refused");
  if (adapter.bias) objections.push_back("a bias other than none is refused");
  if (adapter.patterns) objections.push_back("rank_pattern and alpha_pattern are ignored by it");
  if (adapter.parameters || adapter.experts) {
    objections.push_back("adapters on experts match nothing there");
  }
  if (adapter.rank > kVllmHighestRank) {
    objections.push_back(
        absl::StrCat("lora_r ", adapter.rank, " is above its highest, ", kVllmHighestRank));
  }
  return objections;
}

LoaderVerdict CheckVllm(const LoadableDerivative& derivative, const Adapter& adapter) {
  const std::vector<std::string> objections = VllmObjections(adapter);
  if (objections.empty()) {
    return {"vLLM", true,
            adapter.rank > kVllmDefaultRank
                ? absl::StrCat("--enable-lora --max-lora-rank ", adapter.rank)
                : "--enable-lora"};
  }
  const std::string why = absl::StrJoin(objections, "; ");
  if (HasMerged(derivative)) {
    return {"vLLM", true, absl::StrCat("only merged/, as a model: of the adapter ", why)};
  }
  return {"vLLM", false, absl::StrCat(why, "; ", kWantMerged)};
}

LoaderVerdict CheckLlamaCpp(const LoadableDerivative& derivative, const Adapter& adapter) {
  if (const std::vector<std::string> files = GgufFiles(derivative); !files.empty()) {
    return {"llama.cpp", true, absl::StrJoin(files, ", ")};
  }
  const std::string type = ModelType(derivative);
  if (!type.empty() && !IsOneOf(type, kLlamaCppTypes)) {
    return {"llama.cpp", false, absl::StrCat("it does not know models of type ", type)};
  }
  if (HasMerged(derivative)) return {"llama.cpp", true, "convert_hf_to_gguf.py of merged/"};
  std::vector<std::string> objections;
  if (!adapter.there) objections.push_back(adapter.fault);
  if (adapter.dora) objections.push_back("DoRA has no place in its adapter format");
  if (adapter.saves_modules || adapter.bias) {
    objections.push_back("its adapter format holds LoRA pairs only");
  }
  if (adapter.patterns) objections.push_back("its adapter format has one alpha for all modules");
  if (adapter.rslora) {
    objections.push_back("its converter ignores use_rslora, so the scale would be wrong");
  }
  if (adapter.parameters || adapter.experts) {
    objections.push_back("its converter takes no adapters on experts");
  }
  if (objections.empty()) return {"llama.cpp", true, "convert_lora_to_gguf.py with the base"};
  return {
      "llama.cpp", false,
      absl::StrCat(absl::StrJoin(objections, "; "), "; publish it with formats: [adapter, gguf]")};
}

LoaderVerdict CheckOllama(const LoadableDerivative& derivative) {
  if (const std::vector<std::string> files = GgufFiles(derivative); !files.empty()) {
    return {"Ollama", true, absl::StrCat("FROM or ADAPTER ", files.front())};
  }
  if (HasMerged(derivative))
    return {"Ollama", true, "convert merged/ to GGUF, then FROM that file"};
  return {"Ollama", false,
          "it reads safetensors adapters of few architectures only; publish it with formats: "
          "[adapter, gguf]"};
}

LoaderVerdict CheckMlx(const LoadableDerivative& derivative) {
  if (!HasMerged(derivative)) {
    return {"mlx-lm", false, absl::StrCat("it wants a merged model; ", kWantMerged)};
  }
  const std::string type = ModelType(derivative);
  if (!IsOneOf(type, kMlxTypes)) {
    return {"mlx-lm", false, absl::StrCat("it does not know models of type ", type)};
  }
  return {"mlx-lm", true, "mlx_lm.convert or mlx_lm.generate of merged/"};
}

}  // namespace

std::vector<LoaderVerdict> CheckLoaders(const LoadableDerivative& derivative) {
  const Adapter adapter = ReadAdapter(derivative);
  return {CheckPeft(adapter),
          CheckTransformers(derivative, adapter),
          CheckVllm(derivative, adapter),
          CheckLlamaCpp(derivative, adapter),
          CheckOllama(derivative),
          CheckMlx(derivative)};
}

}  // namespace offshoot::cli
