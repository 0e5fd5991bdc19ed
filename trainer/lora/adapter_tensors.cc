#include "trainer/lora/adapter_tensors.h"

#include <algorithm>
#include <optional>
#include <set>
#include <vector>

#include "trainer/error.h"
#include "trainer/lora/fused_experts.h"

namespace offshoot::trainer {
namespace {

constexpr std::size_t kNamesShown = 200;  // of each kind of fault, in one message
constexpr const char* kPrefix = "base_model.model.";

// The parts of a tensor's name; older PEFT versions wrote the adapter's name too.
struct AdapterTensor {
  std::string path;
  bool is_a = false;
};

std::optional<AdapterTensor> ParseName(const std::string& name) {
  std::string path = name;
  if (!path.starts_with(kPrefix)) return std::nullopt;
  path = path.substr(std::string(kPrefix).size());
  for (const char* part : {".lora_A", ".lora_B"}) {
    for (const char* ending : {".weight", ".default.weight"}) {
      const std::string tail = std::string(part) + ending;
      if (path.ends_with(tail)) {
        return AdapterTensor{path.substr(0, path.size() - tail.size()), part[6] == 'A'};
      }
    }
  }
  return std::nullopt;
}

void Append(const char* title, const std::vector<std::string>& names, std::string& message) {
  if (names.empty()) return;
  message += std::string(" ") + title + " (" + std::to_string(names.size()) + "): ";
  for (std::size_t i = 0; i < std::min(names.size(), kNamesShown); ++i) {
    message += (i == 0 ? "" : ", ") + names[i];
  }
  message += names.size() > kNamesShown ? ", ..." : ".";
}

struct Faults {
  std::vector<std::string> missing, extra, misshaped;

  void ThrowIfAny(const std::string& directory) const {
    if (missing.empty() && extra.empty() && misshaped.empty()) return;
    std::string message = "The adapter in " + directory +
                          " does not fit the base model; use the base it was trained on.";
    Append("Missing", missing, message);
    Append("Belonging to no linear layer", extra, message);
    Append("Mis-shaped", misshaped, message);
    throw Error(Reason::kBadModel, message);
  }
};

void CheckShapes(const Decoder::LinearModule& module, const AdapterPair& pair, Faults& faults) {
  const auto describe = [&](const char* part, const at::Tensor& tensor) {
    std::string text = AdapterTensorName(module.path, part) + " [";
    for (std::int64_t i = 0; i < tensor.dim(); ++i) {
      text += (i == 0 ? "" : ", ") + std::to_string(tensor.size(i));
    }
    faults.misshaped.push_back(text + "] for a layer of " + std::to_string(module.in_features) +
                               " to " + std::to_string(module.out_features) + " and r " +
                               std::to_string(pair.size.r));
  };
  if (pair.a.sizes() != at::IntArrayRef{pair.size.r, module.in_features}) {
    describe("lora_A", pair.a);
  }
  if (pair.b.sizes() != at::IntArrayRef{module.out_features, pair.size.r}) {
    describe("lora_B", pair.b);
  }
}

// Targeted modules that have no tensors. Where a model has experts, PEFT applies a bare
// gate_proj/up_proj/down_proj to the routed experts alone, so the dense ones may lack theirs.
void FindMissing(const LinearModules& modules, const PeftConfig& config, const AdapterPairs& pairs,
                 bool mixture, Faults& faults) {
  if (config.narrowed) return;
  const bool has_experts =
      mixture || std::any_of(modules.begin(), modules.end(), [](const auto& module) {
        return module.group == ModuleGroup::kExpert;
      });
  for (std::size_t i = 0; i < modules.size(); ++i) {
    if (pairs.contains(i) || (has_experts && modules[i].group == ModuleGroup::kMlp)) continue;
    const bool targeted = std::any_of(
        config.lora.target_modules.begin(), config.lora.target_modules.end(),
        [&](const std::string& target) { return TargetMatches(target, modules[i].path); });
    if (targeted) faults.missing.push_back(AdapterTensorName(modules[i].path, "lora_A"));
  }
}

}  // namespace

std::string AdapterTensorName(const std::string& module_path, const std::string& part) {
  return kPrefix + module_path + "." + part + ".weight";
}

AdapterPairs ReadAdapterPairs(const LinearModules& modules, const PeftConfig& config,
                              const SafetensorsFile& file, const std::string& directory,
                              bool mixture) {
  std::map<std::string, std::size_t> index;
  for (std::size_t i = 0; i < modules.size(); ++i) index[modules[i].path] = i;
  AdapterPairs pairs;
  Faults faults;
  std::set<std::string> fused;
  AdapterPairs from_fused;
  ReadFusedExperts(modules, config, file, from_fused, fused, faults.misshaped);
  for (const TensorInfo& info : file.tensors()) {
    if (fused.contains(info.name)) continue;
    const std::optional<AdapterTensor> parsed = ParseName(info.name);
    const auto module = parsed ? index.find(parsed->path) : index.end();
    if (module == index.end()) {
      const std::string name = parsed ? LastName(parsed->path) : "";
      const bool head = name == "lm_head" || name == "embed_tokens";
      faults.extra.push_back(
          info.name + (head ? " (adapters of the head or embedding are not supported)" : ""));
      continue;
    }
    AdapterPair& pair = pairs[module->second];
    at::Tensor copy = file.Get(info.name).to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    (parsed->is_a ? pair.a : pair.b) = std::move(copy);
  }
  for (auto& [module, pair] : pairs) {
    const std::string& path = modules[module].path;
    pair.size = SizeOf(config.lora, path);
    if (!pair.a.defined()) faults.missing.push_back(AdapterTensorName(path, "lora_A"));
    if (!pair.b.defined()) faults.missing.push_back(AdapterTensorName(path, "lora_B"));
    if (pair.a.defined() && pair.b.defined()) CheckShapes(modules[module], pair, faults);
  }
  pairs.merge(from_fused);
  FindMissing(modules, config, pairs, mixture, faults);
  faults.ThrowIfAny(directory);
  if (pairs.empty()) {
    throw Error(Reason::kBadModel, "The adapter in " + directory + " has no tensors.");
  }
  return pairs;
}

}  // namespace offshoot::trainer
