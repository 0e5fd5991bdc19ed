#include "trainer/models/forward_context.h"

namespace offshoot::trainer {

std::uint64_t ModuleDropoutSeed(std::uint64_t dropout_seed, std::size_t module) {
  std::uint64_t z = dropout_seed + 0x9E3779B97F4A7C15ULL * (static_cast<std::uint64_t>(module) + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

bool FindAdapter(const ForwardContext& context, std::size_t module, LoraWeights& adapter) {
  const LoraWeights* found = context.adapters == nullptr ? nullptr : context.adapters->Find(module);
  if (found == nullptr || !found->enabled) return false;
  adapter = *found;
  if (!context.training) adapter.dropout = 0.0;
  adapter.dropout_seed = ModuleDropoutSeed(context.dropout_seed, module);
  return true;
}

at::Tensor Projection::Apply(const LayerInput& x, const ForwardContext& context) const {
  LoraWeights adapter;
  const LoraWeights* found = FindAdapter(context, module, adapter) ? &adapter : nullptr;
  return LoraLinear(x.value, base, found, x.remake);
}

at::Tensor Projection::ApplyLast(const LayerInput& x, const ForwardContext& context) const {
  if (!context.result_unread) return Apply(x, context);
  LoraWeights adapter;
  const bool found = FindAdapter(context, module, adapter);
  return LoraLinearGroup(x.value, {{base, found ? &adapter : nullptr, /*unread=*/true}},
                         x.remake)[0];
}

std::vector<at::Tensor> ApplyTogether(const std::vector<const Projection*>& projections,
                                      const LayerInput& x, const ForwardContext& context) {
  std::vector<LoraWeights> adapters(projections.size());
  std::vector<LoraMember> members;
  for (std::size_t i = 0; i < projections.size(); ++i) {
    const bool found = FindAdapter(context, projections[i]->module, adapters[i]);
    members.push_back({projections[i]->base, found ? &adapters[i] : nullptr});
  }
  return LoraLinearGroup(x.value, members, x.remake);
}

}  // namespace offshoot::trainer
