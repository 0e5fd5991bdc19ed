// adapter_config.json as PEFT reads and writes it. Pure but for the file read; thread-safe.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "trainer/lora/lora_config.h"
#include "trainer/lora/lora_targets.h"

namespace offshoot::trainer {

struct PeftConfig {
  LoraConfig lora;  // target_modules as given; may be empty with target_parameters
  std::vector<std::string> target_parameters;
  // True if settings narrow the targets (exclude_modules, layers_to_transform): then a targeted
  // module without tensors is no fault.
  bool narrowed = false;
};

// Throws Error(kBadModel) naming the file and a setting that is wrong or changes the mathematics in
// a way that is not supported (DoRA, modules_to_save, biases, ...).
PeftConfig ReadPeftConfig(const std::string& directory);

nlohmann::json MakePeftConfig(const LoraConfig& lora, const TargetNames& targets,
                              const std::string& base_id, const std::string& base_revision);

}  // namespace offshoot::trainer
