#include "trainer/lora/lora_set.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "trainer/error.h"
#include "trainer/lora/adapter_tensors.h"
#include "trainer/lora/fused_experts.h"
#include "trainer/lora/lora_targets.h"
#include "trainer/lora/peft_config.h"
#include "trainer/weights/durable_file.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

struct SizedPath {
  std::string path;
  LoraSize size;
};

// Rank and alpha patterns that give each module its size: one entry per name where all modules of
// that name agree, else one per module.
void DescribeSizes(const std::vector<SizedPath>& modules, LoraConfig& config) {
  std::map<std::string, std::set<std::pair<std::int64_t, double>>> by_name;
  for (const SizedPath& module : modules) {
    by_name[LastName(module.path)].insert({module.size.r, module.size.alpha});
  }
  config.rank_pattern.clear();
  config.alpha_pattern.clear();
  for (const auto& [path, size] : modules) {
    const std::string name = LastName(path);
    const std::string& key = by_name.at(name).size() == 1 ? name : path;
    if (size.r != config.r) config.rank_pattern[key] = size.r;
    if (size.alpha != config.alpha) config.alpha_pattern[key] = size.alpha;
  }
}

// "mlp.experts.up_proj" of "model.layers.1.mlp.experts.up_proj".
}  // namespace

LoraSet::LoraSet(const Decoder& decoder, LoraConfig config)
    : decoder_(decoder),
      config_(std::move(config)),
      sizes_(decoder.linear_modules().size()),
      fused_(decoder.linear_modules().size()),
      by_module_(decoder.linear_modules().size()) {
  // Experts' modules stand as gate, up, down of one after the other.
  int next = 0;
  for (const auto& module : decoder.linear_modules()) {
    const bool expert = module.group == ModuleGroup::kExpert;
    expert_part_.push_back(expert ? next : -1);
    next = expert ? (next + 1) % 3 : 0;
  }
}

bool LoraSet::SharesA(std::size_t module, bool fused) const {
  return fused && expert_part_[module] == 1 && fused_[module - 1];
}

void LoraSet::Add(std::size_t module, const LoraSize& size, at::Tensor a, at::Tensor b,
                  bool fused) {
  const std::string& path = decoder_.linear_modules()[module].path;
  const bool shares = SharesA(module, fused);
  auto weights = std::make_unique<LoraWeights>();
  weights->a = shares ? by_module_[module - 1]->a : std::move(a).requires_grad_(true);
  weights->b = std::move(b).requires_grad_(true);
  weights->scaling = ScalingOf(config_, size);
  weights->dropout = config_.dropout;
  if (!shares) parameters_.push_back({AdapterTensorName(path, "lora_A"), weights->a});
  parameters_.push_back({AdapterTensorName(path, "lora_B"), weights->b});
  sizes_[module] = size;
  fused_[module] = fused;
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
  std::vector<bool> fused(modules.size());
  for (const std::string& target : config.target_modules) {
    for (const std::size_t module : FusedTargetModules(modules, target)) fused[module] = true;
  }
  std::unique_ptr<LoraSet> set(new LoraSet(decoder, config));
  at::Generator generator = at::detail::createCPUGenerator(seed);
  for (const std::size_t i : selected) {
    const auto& module = modules[i];
    const LoraSize size = SizeOf(config, module.path);
    const double bound = 1.0 / std::sqrt(static_cast<double>(module.in_features));
    at::Tensor a = at::empty({size.r, module.in_features}, at::kFloat);
    a.uniform_(-bound, bound, generator);
    at::Tensor b = at::zeros({module.out_features, size.r}, at::kFloat);
    set->Add(i, size, a.to(c10::Device(decoder.device())), b.to(c10::Device(decoder.device())),
             fused[i]);
  }
  set->targets_ = DescribeTargets(modules, selected, decoder.spec().mixture);
  return set;
}

std::unique_ptr<LoraSet> LoraSet::Load(const Decoder& decoder, const std::string& directory) {
  const auto& modules = decoder.linear_modules();
  PeftConfig config = ReadPeftConfig(directory);
  const auto file = SafetensorsFile::Open(
      (std::filesystem::path(directory) / "adapter_model.safetensors").string());
  AdapterPairs pairs = ReadAdapterPairs(modules, config, *file, directory, decoder.spec().mixture);

  // The tensors decide the ranks; a pattern that PEFT would need is written again on saving.
  std::vector<std::size_t> selected;
  std::vector<SizedPath> sizes;
  for (const auto& [module, pair] : pairs) {
    selected.push_back(module);
    sizes.push_back({modules[module].path, pair.size});
  }
  DescribeSizes(sizes, config.lora);
  std::unique_ptr<LoraSet> set(new LoraSet(decoder, config.lora));
  for (auto& [module, pair] : pairs) {
    set->Add(module, pair.size, pair.a.to(c10::Device(decoder.device())),
             pair.b.to(c10::Device(decoder.device())), pair.fused);
  }
  set->targets_ = DescribeTargets(modules, selected, decoder.spec().mixture);
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

// PEFT (0.21) turns adapters of single experts into its fused layout: gate and up together or
// neither and not without down (it takes them for the inner of two wrappers), every expert, all of
// the config's own rank and alpha. Others are written fused here.
bool LoraSet::WrittenFused() const {
  const auto& modules = decoder_.linear_modules();
  bool any[3] = {}, all[3] = {true, true, true};  // of the layer at hand
  bool up_anywhere = false, down_anywhere = false;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const int part = expert_part_[i];
    if (part < 0) continue;
    const bool adapted = by_module_[i] != nullptr;
    if (adapted && (fused_[i] || sizes_[i].r != config_.r || sizes_[i].alpha != config_.alpha)) {
      return true;
    }
    any[part] |= adapted;
    (part == 2 ? down_anywhere : up_anywhere) |= adapted;
    all[part] &= adapted;
    if (part < 2 || (i + 1 < modules.size() && expert_part_[i + 1] == 0)) continue;
    if (any[0] != all[0] || any[1] != all[1] || any[2] != all[2] || any[0] != any[1]) return true;
    std::fill(std::begin(any), std::end(any), false);
    std::fill(std::begin(all), std::end(all), true);
  }
  return up_anywhere && !down_anywhere;
}

void LoraSet::Save(const std::string& directory, const std::string& base_id,
                   const std::string& base_revision) const {
  const std::filesystem::path root(directory);
  const auto& modules = decoder_.linear_modules();
  const bool fused = WrittenFused();
  std::map<std::string, at::Tensor> tensors;
  std::vector<SizedPath> sizes;
  std::vector<std::size_t> selected;
  bool has_experts = false;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    if (by_module_[i] == nullptr) continue;
    const bool expert = modules[i].group == ModuleGroup::kExpert;
    has_experts = has_experts || expert;
    if (expert && fused) continue;
    const std::string& path = modules[i].path;
    tensors[AdapterTensorName(path, "lora_A")] = by_module_[i]->a.detach();
    tensors[AdapterTensorName(path, "lora_B")] = by_module_[i]->b.detach();
    // Dense MLPs beside routed experts are named as parameters there, and matched as such.
    const bool parameter = decoder_.spec().mixture && modules[i].group == ModuleGroup::kMlp;
    sizes.push_back({parameter ? path + ".weight" : path, sizes_[i]});
    selected.push_back(i);
  }
  LoraConfig config = config_;
  if (has_experts && config.use_rslora) {
    // PEFT joins gate and up to one pair of twice the rank, which only plain scaling survives.
    const auto fold = [&](const LoraSize& size) {
      return ScalingOf(config_, size) * static_cast<double>(size.r);
    };
    for (SizedPath& module : sizes) module.size.alpha = fold(module.size);
    config.alpha = fold({config.r, config.alpha});
    config.use_rslora = false;
  }
  TargetNames targets = DescribeTargets(modules, selected, decoder_.spec().mixture);
  if (fused) {
    const double scaling = ScalingOf(config, {config.r, config.alpha});
    const auto find = [this](std::size_t module) { return Find(module); };
    std::set<std::string> parameters;
    for (const FusedAdapter& adapter : FuseExperts(modules, find, scaling)) {
      tensors[AdapterTensorName(adapter.prefix, "lora_A")] = adapter.a;
      tensors[AdapterTensorName(adapter.prefix, "lora_B")] = adapter.b;
      sizes.push_back({adapter.path, adapter.size});
      parameters.insert(BelowLayer(adapter.path));
    }
    targets.parameters.insert(targets.parameters.end(), parameters.begin(), parameters.end());
  }
  // PEFT refuses dropout beside parameters; it is of no use to who loads the adapter.
  if (has_experts || !targets.parameters.empty()) config.dropout = 0.0;
  DescribeSizes(sizes, config);
  WriteSafetensors((root / "adapter_model.safetensors").string(), tensors, {{"format", "pt"}});
  WriteFileDurably((root / "adapter_config.json").string(),
                   MakePeftConfig(config, targets, base_id, base_revision).dump(2) + "\n");
}

}  // namespace offshoot::trainer
