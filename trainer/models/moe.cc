// A mixture of experts: the routed experts' weighted sum, plus a shared MLP where the model has
// one.
#include "trainer/models/feed_forward.h"
#include "trainer/models/grouped_experts.h"
#include "trainer/models/router.h"

namespace offshoot::trainer {
namespace {

class MixtureOfExperts final : public FeedForward {
 public:
  MixtureOfExperts(const MoeSpec& spec, std::int64_t hidden, const std::string& layer_path,
                   ModuleLoader& loader)
      : router_(spec.router, hidden, layer_path, loader) {
    const std::string path = layer_path + "." + spec.experts_path;
    if (loader.Has(path + ".gate_up_proj")) {
      LoadFused(spec, hidden, path, loader);
    } else {
      LoadEach(spec, hidden, path, loader);
    }
    for (const DenseMlpSpec& shared : spec.shared) {
      shared_ = MakeFeedForward(shared, hidden, layer_path, loader);
    }
  }

  FeedForwardResult Forward(const LayerInput& x, const ForwardContext& context) const override {
    Routing routing = router_.Route(x.value, context.router_statistics);
    at::Tensor output = RunExperts(experts_, x.value, routing.experts, routing.weights, context);
    if (shared_ != nullptr) output = output.add(shared_->Forward(x, context).output);
    return {std::move(output), std::move(routing.sums)};
  }

 private:
  // As the hubs publish them: three tensors an expert.
  void LoadEach(const MoeSpec& spec, std::int64_t hidden, const std::string& path,
                ModuleLoader& loader) {
    const ModuleGroup group = ModuleGroup::kExpert;
    for (std::int64_t e = 0; e < spec.router.experts; ++e) {
      const std::string expert = path + "." + std::to_string(e) + ".";
      Expert parts;
      parts.gate = loader.Linear(expert + spec.gate_name, {hidden, spec.intermediate}, group);
      parts.up = loader.Linear(expert + spec.up_name, {hidden, spec.intermediate}, group);
      parts.down = loader.Linear(expert + spec.down_name, {spec.intermediate, hidden}, group);
      experts_.push_back(parts);
    }
  }

  // As transformers 5 holds them in memory: gate_up_proj [E, 2I, H], gate first, and down_proj
  // [E, H, I]. The modules keep the names that the hubs use.
  void LoadFused(const MoeSpec& spec, std::int64_t hidden, const std::string& path,
                 ModuleLoader& loader) {
    const ModuleGroup group = ModuleGroup::kExpert;
    const std::int64_t width = spec.intermediate;
    const at::Tensor gate_up =
        loader.Tensor(path + ".gate_up_proj", {spec.router.experts, 2 * width, hidden});
    const at::Tensor down =
        loader.Tensor(path + ".down_proj", {spec.router.experts, hidden, width});
    const PageRelease release_gate_up = loader.ReleaseOf(path + ".gate_up_proj");
    const PageRelease release_down = loader.ReleaseOf(path + ".down_proj");
    for (std::int64_t e = 0; e < spec.router.experts; ++e) {
      const std::string expert = path + "." + std::to_string(e) + ".";
      at::Tensor gate_weight, up_weight, down_weight;
      if (gate_up.defined() && down.defined()) {
        gate_weight = gate_up[e].slice(0, 0, width);
        up_weight = gate_up[e].slice(0, width, 2 * width);
        down_weight = down[e];
      }
      Expert parts;
      parts.gate = loader.Register(expert + spec.gate_name, {hidden, width}, group, gate_weight);
      parts.up = loader.Register(expert + spec.up_name, {hidden, width}, group, up_weight);
      parts.down = loader.Register(expert + spec.down_name, {width, hidden}, group, down_weight);
      // What was quantised need not stay.
      if (gate_weight.defined() && release_gate_up) release_gate_up(0, gate_up.nbytes());
      if (down_weight.defined() && release_down) release_down(0, down.nbytes());
      experts_.push_back(parts);
    }
  }

  const Router router_;
  std::vector<Expert> experts_;
  std::unique_ptr<FeedForward> shared_;
};

}  // namespace

std::unique_ptr<FeedForward> MakeFeedForward(const MoeSpec& spec, std::int64_t hidden,
                                             const std::string& layer_path, ModuleLoader& loader) {
  return std::make_unique<MixtureOfExperts>(spec, hidden, layer_path, loader);
}

}  // namespace offshoot::trainer
