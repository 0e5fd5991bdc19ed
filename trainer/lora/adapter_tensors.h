// The tensors of adapter_model.safetensors and the modules they belong to. Pure; thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <map>
#include <string>

#include "trainer/lora/lora_targets.h"
#include "trainer/lora/peft_config.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {

// base_model.model.<module path>.<part>.weight
std::string AdapterTensorName(const std::string& module_path, const std::string& part);

struct AdapterPair {
  at::Tensor a, b;  // float32 copies, [r, in] and [out, r]
  LoraSize size;
  // Part of an adapter on fused expert weights: the expert's gate and up share one A.
  bool fused = false;
};
using AdapterPairs = std::map<std::size_t, AdapterPair>;  // by module index

// mixture: as for DescribeTargets. Throws one Error(kBadModel) with all tensors that are missing,
// belong to no module, or have a wrong shape.
AdapterPairs ReadAdapterPairs(const LinearModules& modules, const PeftConfig& config,
                              const SafetensorsFile& file, const std::string& directory,
                              bool mixture = false);

}  // namespace offshoot::trainer
