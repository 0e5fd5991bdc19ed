// down(silu(gate(x)) * up(x))
#include "trainer/models/feed_forward.h"

namespace offshoot::trainer {
namespace {

class DenseMlp final : public FeedForward {
 public:
  DenseMlp(const DenseMlpSpec& spec, std::int64_t hidden, const std::string& layer_path,
           ModuleLoader& loader) {
    const std::string path = layer_path + "." + spec.path;
    const ModuleGroup group = ModuleGroup::kMlp;
    gate_ = loader.Linear(path + ".gate_proj", {hidden, spec.intermediate, spec.bias}, group);
    up_ = loader.Linear(path + ".up_proj", {hidden, spec.intermediate, spec.bias}, group);
    down_ = loader.Linear(path + ".down_proj", {spec.intermediate, hidden, spec.bias}, group);
  }

  FeedForwardResult Forward(const LayerInput& x, const ForwardContext& context) const override {
    const auto halves = ApplyTogether({&gate_, &up_}, x, context);
    const LayerInput inner = {SwiGlu(halves[0], halves[1]), {Remake::Kind::kSwiGlu, halves}};
    return {down_.ApplyLast(inner, context), {}};
  }

 private:
  Projection gate_, up_, down_;
};

}  // namespace

std::unique_ptr<FeedForward> MakeFeedForward(const DenseMlpSpec& spec, std::int64_t hidden,
                                             const std::string& layer_path, ModuleLoader& loader) {
  return std::make_unique<DenseMlp>(spec, hidden, layer_path, loader);
}

}  // namespace offshoot::trainer
