// PEFT's layout for adapters on fused expert weights (its `target_parameters`): taken apart into
// one pair per expert and matrix, and put together again. Pure; thread-safe.
//
//   C.lora_{A,B} and C.base_layer.lora_{A,B}, C the experts' container
//   (model.layers.1.mlp.experts): one belongs to gate_up_proj [E, 2I, H], the other to down_proj
//   [E, H, I]; their shapes tell. A [E * R, in], the expert is the slow index; B [out, R * E], the
//   expert is the fast index.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "trainer/lora/adapter_tensors.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {

// Adds what the file holds in that layout to `pairs` and the names of its tensors to `used`.
// Appends to `faults` what does not fit.
void ReadFusedExperts(const LinearModules& modules, const PeftConfig& config,
                      const SafetensorsFile& file, AdapterPairs& pairs, std::set<std::string>& used,
                      std::vector<std::string>& faults);

// The modules that a target such as `mlp.experts.gate_up_proj` stands for, ascending; empty if it
// names no fused expert weight.
std::vector<std::size_t> FusedTargetModules(const LinearModules& modules,
                                            const std::string& target);

// One fused weight's adapter, as PEFT names it.
struct FusedAdapter {
  std::string path;    // model.layers.1.mlp.experts.gate_up_proj
  LoraSize size;       // rank per expert; alpha / r is the scaling
  std::string prefix;  // of the tensors: model.layers.1.mlp.experts.base_layer
  at::Tensor a, b;
};

// The adapters of all expert modules in that layout; exact: where gate and up have an A each, the
// fused pair holds both and its B is zero where they do not meet. find: the adapter of a module or
// null. `scaling` becomes that of every fused pair.
std::vector<FusedAdapter> FuseExperts(const LinearModules& modules,
                                      const std::function<const LoraWeights*(std::size_t)>& find,
                                      double scaling);

}  // namespace offshoot::trainer
