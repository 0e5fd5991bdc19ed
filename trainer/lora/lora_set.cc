#include "trainer/lora/lora_set.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "trainer/error.h"
#include "trainer/lora/adapter_tensors.h"
#include "trainer/lora/lora_targets.h"
#include "trainer/lora/peft_config.h"
#include "trainer/weights/durable_file.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kLargestRank = 65536;

// Rank and alpha patterns that give each module its size: one entry per name where all modules of
// that name agree, else one per module.
void DescribeSizes(const LinearModules& modules, const AdapterPairs& pairs, LoraConfig& config) {
  std::map<std::string, std::set<std::pair<std::int64_t, double>>> by_name;
  for (const auto& [module, pair] : pairs) {
    by_name[LastName(modules[module].path)].insert({pair.size.r, pair.size.alpha});
  }
  config.rank_pattern.clear();
  config.alpha_pattern.clear();
  for (const auto& [module, pair] : pairs) {
    const std::string& path = modules[module].path;
    const std::string name = LastName(path);
    const std::string& key = by_name.at(name).size() == 1 ? name : path;
    if (pair.size.r != config.r) config.rank_pattern[key] = pair.size.r;
    if (pair.size.alpha != config.alpha) config.alpha_pattern[key] = pair.size.alpha;
  }
}

}  // namespace

LoraSet::LoraSet(const Decoder& decoder, LoraConfig config)
    : config_(std::move(config)), by_module_(decoder.linear_modules().size()) {}

void LoraSet::Add(std::size_t module, const std::string& path, at::Tensor a, at::Tensor b) {
  auto weights = std::make_unique<LoraWeights>();
  weights->a = std::move(a).requires_grad_(true);
  weights->b = std::move(b).requires_grad_(true);
  weights->scaling = ScalingOf(config_, SizeOf(config_, path));
  weights->dropout = config_.dropout;
  parameters_.push_back({AdapterTensorName(path, "lora_A"), weights->a});
  parameters_.push_back({AdapterTensorName(path, "lora_B"), weights->b});
  by_module_[module] = std::move(weights);
}

std::unique_ptr<LoraSet> LoraSet::Create(const Decoder& decoder, const LoraConfig& config,
                                         std::uint64_t seed) {
  const auto& modules = decoder.linear_modules();
  if (config.r < 1 || config.r > kLargestRank) {
    throw Error(Reason::kBadSpec, "lora_r is " + std::to_string(config.r) +
                                      "; give a whole number from 1 to " +
                                      std::to_string(kLargestRank) + ".");
  }
  const std::vector<std::size_t> selected = SelectTargets(modules, config.target_modules);
  std::unique_ptr<LoraSet> set(new LoraSet(decoder, config));
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (const std::size_t i : selected) {
    const auto& module = modules[i];
    const std::int64_t r = SizeOf(config, module.path).r;
    const double bound = 1.0 / std::sqrt(static_cast<double>(module.in_features));
    at::Tensor a = at::empty({r, module.in_features}, at::kFloat);
    a.uniform_(-bound, bound, generator);
    at::Tensor b = at::zeros({module.out_features, r}, at::kFloat);
    set->Add(i, module.path, a.to(c10::Device(decoder.device())),
             b.to(c10::Device(decoder.device())));
  }
  set->targets_ = DescribeTargets(modules, selected);
  return set;
}

std::unique_ptr<LoraSet> LoraSet::Load(const Decoder& decoder, const std::string& directory) {
  const auto& modules = decoder.linear_modules();
  PeftConfig config = ReadPeftConfig(directory);
  const auto file = SafetensorsFile::Open(
      (std::filesystem::path(directory) / "adapter_model.safetensors").string());
  AdapterPairs pairs = ReadAdapterPairs(modules, config, *file, directory);

  // The tensors decide the ranks; a pattern that PEFT would need is written again on saving.
  std::vector<std::size_t> selected;
  for (const auto& [module, pair] : pairs) selected.push_back(module);
  DescribeSizes(modules, pairs, config.lora);
  std::unique_ptr<LoraSet> set(new LoraSet(decoder, config.lora));
  for (auto& [module, pair] : pairs) {
    set->Add(module, modules[module].path, pair.a.to(c10::Device(decoder.device())),
             pair.b.to(c10::Device(decoder.device())));
  }
  set->targets_ = DescribeTargets(modules, selected);
  set->config_.target_modules = set->target_module_names();
  return set;
}

const LoraWeights* LoraSet::Find(std::size_t module) const {
  return module < by_module_.size() ? by_module_[module].get() : nullptr;
}

std::int64_t LoraSet::parameter_count() const {
  std::int64_t count = 0;
  for (const Parameter& parameter : parameters_) count += parameter.tensor.numel();
  return count;
}

std::vector<std::string> LoraSet::target_module_names() const {
  std::vector<std::string> names =
      targets_.pattern.empty() ? targets_.names : std::vector<std::string>{targets_.pattern};
  for (const std::string& parameter : targets_.parameters) {
    names.push_back(parameter.substr(0, parameter.rfind(".weight")));
  }
  return names;
}

void LoraSet::SetEnabled(bool enabled) {
  for (const auto& weights : by_module_) {
    if (weights != nullptr) weights->enabled = enabled;
  }
}

void LoraSet::SetDropout(double probability) {
  config_.dropout = probability;
  for (const auto& weights : by_module_) {
    if (weights != nullptr) weights->dropout = probability;
  }
}

void LoraSet::Save(const std::string& directory, const std::string& base_id,
                   const std::string& base_revision) const {
  const std::filesystem::path root(directory);
  std::map<std::string, at::Tensor> tensors;
  for (const Parameter& parameter : parameters_) {
    tensors[parameter.name] = parameter.tensor.detach();
  }
  WriteSafetensors((root / "adapter_model.safetensors").string(), tensors, {{"format", "pt"}});
  WriteFileDurably((root / "adapter_config.json").string(),
                   MakePeftConfig(config_, targets_, base_id, base_revision).dump(2) + "\n");
}

}  // namespace offshoot::trainer
