#include "trainer/lora/fused_experts.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <map>

namespace offshoot::trainer {
namespace {

// The expert modules of one layer, in the decoder's order: gate, up and down of each expert.
struct Container {
  std::string path;  // model.layers.1.mlp.experts
  std::vector<std::size_t> modules;

  std::int64_t experts() const { return static_cast<std::int64_t>(modules.size() / 3); }
};

std::vector<Container> FindContainers(const LinearModules& modules) {
  std::map<std::string, Container> found;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    if (modules[i].group != ModuleGroup::kExpert) continue;
    const std::string& path = modules[i].path;
    const std::size_t name = path.rfind('.');
    const std::string container = path.substr(0, path.rfind('.', name - 1));
    found[container].path = container;
    found[container].modules.push_back(i);
  }
  std::vector<Container> containers;
  for (auto& [path, container] : found) containers.push_back(std::move(container));
  return containers;
}

// transformers calls the container `mlp.experts` in every family, whatever the files say.
std::string InMemoryPath(const std::string& path) {
  const std::string stored = ".block_sparse_moe.";
  const std::size_t place = path.find(stored);
  return place == std::string::npos
             ? path
             : path.substr(0, place) + ".mlp." + path.substr(place + stored.size());
}

struct FusedPair {
  std::string a_name, b_name;
  at::Tensor a, b;
};

class Splitter {
 public:
  Splitter(const LinearModules& modules, const PeftConfig& config, AdapterPairs& pairs,
           std::vector<std::string>& faults)
      : modules_(modules), config_(config), pairs_(pairs), faults_(faults) {}

  void Split(const Container& container, const FusedPair& fused) {
    const std::int64_t experts = container.experts();
    const auto& gate = modules_[container.modules[0]];
    const std::int64_t width = gate.out_features;
    const std::int64_t hidden = gate.in_features;
    if (fused.a.dim() != 2 || fused.b.dim() != 2 || fused.a.size(0) % experts != 0 ||
        fused.a.size(0) != fused.b.size(1)) {
      faults_.push_back(fused.a_name + " and lora_B do not hold one pair for each of " +
                        std::to_string(experts) + " experts");
      return;
    }
    const std::int64_t rank = fused.a.size(0) / experts;
    const at::Tensor a = fused.a.view({experts, rank, fused.a.size(1)});
    const at::Tensor b = fused.b.view({fused.b.size(0), rank, experts});
    if (a.size(2) == hidden && b.size(0) == 2 * width) {
      const LoraSize size = FusedSize(container, "gate_up_proj", rank);
      for (std::int64_t e = 0; e < experts; ++e) {
        const at::Tensor both = b.select(2, e);
        Add(container, e, 0, a[e], both.slice(0, 0, width), size);
        Add(container, e, 1, a[e], both.slice(0, width), size);
      }
    } else if (a.size(2) == width && b.size(0) == hidden) {
      const LoraSize size = FusedSize(container, "down_proj", rank);
      for (std::int64_t e = 0; e < experts; ++e) Add(container, e, 2, a[e], b.select(2, e), size);
    } else {
      faults_.push_back(fused.a_name + " fits neither gate_up_proj nor down_proj of the experts");
    }
  }

 private:
  LoraSize FusedSize(const Container& container, const std::string& parameter,
                     std::int64_t rank) const {
    LoraSize size = SizeOf(config_.lora, InMemoryPath(container.path) + "." + parameter);
    // The tensors have the last word on the rank; the scaling is alpha over the configured one.
    size.alpha *= static_cast<double>(rank) / static_cast<double>(size.r);
    size.r = rank;
    return size;
  }
  void Add(const Container& container, std::int64_t expert, std::size_t part, const at::Tensor& a,
           const at::Tensor& b, const LoraSize& size) {
    const std::size_t module = container.modules[static_cast<std::size_t>(expert) * 3 + part];
    pairs_[module] = {a.clone(), b.clone(at::MemoryFormat::Contiguous), size, /*fused=*/true};
  }

  const LinearModules& modules_;
  const PeftConfig& config_;
  AdapterPairs& pairs_;
  std::vector<std::string>& faults_;
};

}  // namespace

void ReadFusedExperts(const LinearModules& modules, const PeftConfig& config,
                      const SafetensorsFile& file, AdapterPairs& pairs, std::set<std::string>& used,
                      std::vector<std::string>& faults) {
  Splitter splitter(modules, config, pairs, faults);
  for (const Container& container : FindContainers(modules)) {
    for (const char* level : {"", ".base_layer"}) {
      const std::string path = InMemoryPath(container.path) + level;
      FusedPair fused;
      fused.a_name = AdapterTensorName(path, "lora_A");
      fused.b_name = AdapterTensorName(path, "lora_B");
      if (!file.Has(fused.a_name) || !file.Has(fused.b_name)) continue;
      used.insert({fused.a_name, fused.b_name});
      fused.a = file.Get(fused.a_name).to(at::kFloat);
      fused.b = file.Get(fused.b_name).to(at::kFloat);
      splitter.Split(container, fused);
    }
  }
}

namespace {

// The parts of an expert that a fused weight holds, by their place among gate, up and down.
struct FusedWeight {
  const char* name;
  std::array<std::size_t, 2> parts;
  std::size_t count;
};
constexpr std::array<FusedWeight, 2> kFusedWeights = {
    {{"gate_up_proj", {0, 1}, 2}, {"down_proj", {2, 2}, 1}}};

std::size_t ModuleOf(const Container& container, std::int64_t expert, std::size_t part) {
  return container.modules[static_cast<std::size_t>(expert) * 3 + part];
}

using Find = std::function<const LoraWeights*(std::size_t)>;

// What one expert needs of the fused pair's rank: each distinct A among its parts.
std::int64_t RankOf(const Container& container, const FusedWeight& weight, std::int64_t expert,
                    const Find& find) {
  std::int64_t rank = 0;
  const LoraWeights* last = nullptr;
  for (std::size_t i = 0; i < weight.count; ++i) {
    const LoraWeights* pair = find(ModuleOf(container, expert, weight.parts[i]));
    if (pair == nullptr) continue;
    if (last == nullptr || !last->a.is_same(pair->a)) rank += pair->a.size(0);
    last = pair;
  }
  return rank;
}

// a [R, in] and b [out, R] of one expert.
void FillExpert(const LinearModules& modules, const Container& container, const FusedWeight& weight,
                std::int64_t expert, const Find& find, double scaling, const at::Tensor& a,
                const at::Tensor& b) {
  std::int64_t column = 0, row = 0;
  const LoraWeights* last = nullptr;
  for (std::size_t i = 0; i < weight.count; ++i) {
    const std::size_t module = ModuleOf(container, expert, weight.parts[i]);
    const LoraWeights* pair = find(module);
    const std::int64_t rows = modules[module].out_features;
    if (pair != nullptr) {
      const std::int64_t rank = pair->a.size(0);
      const bool shared = last != nullptr && last->a.is_same(pair->a);
      if (!shared) a.narrow(0, column, rank).copy_(pair->a);
      const std::int64_t first = shared ? column - rank : column;
      b.narrow(0, row, rows).narrow(1, first, rank).copy_(pair->b.mul(pair->scaling / scaling));
      if (!shared) column += rank;
      last = pair;
    }
    row += rows;
  }
}

}  // namespace

std::vector<std::size_t> FusedTargetModules(const LinearModules& modules,
                                            const std::string& target) {
  std::vector<std::size_t> found;
  for (const Container& container : FindContainers(modules)) {
    for (const FusedWeight& weight : kFusedWeights) {
      const std::string path = InMemoryPath(container.path) + "." + weight.name;
      // A bare down_proj means each expert's own.
      const bool named = path == target || (path.ends_with("." + target) && target != "down_proj");
      for (std::int64_t e = 0; named && e < container.experts(); ++e) {
        for (std::size_t i = 0; i < weight.count; ++i) {
          found.push_back(ModuleOf(container, e, weight.parts[i]));
        }
      }
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<FusedAdapter> FuseExperts(const LinearModules& modules, const Find& find,
                                      double scaling) {
  const at::NoGradGuard no_grad;
  const std::vector<Container> containers = FindContainers(modules);
  std::vector<FusedAdapter> fused;
  // gate_up_proj is the inner of PEFT's two wrappers, where both are adapted.
  std::set<std::string> with_down;
  for (const FusedWeight* weight : {&kFusedWeights[1], &kFusedWeights[0]}) {
    std::int64_t rank = 0;  // one for all layers, so that one pattern names it
    for (const Container& container : containers) {
      for (std::int64_t e = 0; e < container.experts(); ++e) {
        rank = std::max(rank, RankOf(container, *weight, e, find));
      }
    }
    if (rank == 0) continue;
    for (const Container& container : containers) {
      const std::int64_t experts = container.experts();
      const auto& first = modules[ModuleOf(container, 0, weight->parts[0])];
      const auto parts = static_cast<std::int64_t>(weight->count);
      const at::Tensor a = at::zeros({experts, rank, first.in_features});
      const at::Tensor b = at::zeros({experts, first.out_features * parts, rank});
      for (std::int64_t e = 0; e < experts; ++e) {
        FillExpert(modules, container, *weight, e, find, scaling, a[e], b[e]);
      }
      const std::string path = InMemoryPath(container.path);
      const bool inner = weight->count == 2 && with_down.contains(path);
      if (weight->count == 1) with_down.insert(path);
      // The expert is the slow index of A and the fast one of B.
      fused.push_back({path + "." + weight->name,
                       {rank, scaling * static_cast<double>(rank)},
                       path + (inner ? ".base_layer" : ""),
                       a.flatten(0, 1),
                       b.permute({1, 2, 0}).flatten(1, 2).contiguous()});
    }
  }
  return fused;
}

}  // namespace offshoot::trainer
