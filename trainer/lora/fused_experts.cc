#include "trainer/lora/fused_experts.h"

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
    pairs_[module] = {a.clone(), b.contiguous().clone(), size};
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

}  // namespace offshoot::trainer
