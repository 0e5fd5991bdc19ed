// PEFT's layout for adapters on fused expert weights (its `target_parameters`), taken apart into
// one pair per expert and matrix. Pure; thread-safe.
//
//   C.lora_{A,B} and C.base_layer.lora_{A,B}, C the experts' container
//   (model.layers.1.mlp.experts): one belongs to gate_up_proj [E, 2I, H], the other to down_proj
//   [E, H, I]; their shapes tell. A [E * R, in], the expert is the slow index; B [out, R * E], the
//   expert is the fast index.
#pragma once

#include <set>
#include <string>

#include "trainer/lora/adapter_tensors.h"

namespace offshoot::trainer {

// Adds what the file holds in that layout to `pairs` and the names of its tensors to `used`.
// Appends to `faults` what does not fit.
void ReadFusedExperts(const LinearModules& modules, const PeftConfig& config,
                      const SafetensorsFile& file, AdapterPairs& pairs, std::set<std::string>& used,
                      std::vector<std::string>& faults);

}  // namespace offshoot::trainer
