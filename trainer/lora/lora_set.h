// The adapters of one job: which modules have one, their weights, reading and writing PEFT's layout.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "trainer/models/decoder.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {

struct LoraConfig {
  std::int64_t r = 16;
  double alpha = 32;
  double dropout = 0.0;
  bool use_rslora = false;
  std::vector<std::string> target_modules = {"all-linear"};  // names (suffixes), presets, or one regex as PEFT's string form
};

class LoraSet {
 public:
  // Kaiming-uniform A (PEFT's default init), zero B, drawn in module order from `seed`.
  // Throws Error(kBadSpec) naming a target that matches nothing, with the names there are.
  static std::unique_ptr<LoraSet> Create(const Decoder& decoder, const LoraConfig& config,
                                         std::uint64_t seed);
  // Reads a PEFT directory. Throws Error(kBadModel) with all missing, extra and mis-shaped tensors.
  static std::unique_ptr<LoraSet> Load(const Decoder& decoder, const std::string& directory);

  const LoraConfig& config() const { return config_; }
  // Null if the module has no adapter. `module` indexes Decoder::linear_modules().
  const LoraWeights* Find(std::size_t module) const;

  // Parameters in a fixed order with PEFT's names (base_model.model.<path>.lora_A.weight).
  struct Parameter {
    std::string name;
    at::Tensor tensor;  // float32 leaf
  };
  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t parameter_count() const;
  std::vector<std::string> target_module_names() const;  // as adapter_config.json lists them

  void SetEnabled(bool enabled);                    // false: the base alone
  void SetDropout(double probability);
  // adapter_model.safetensors + adapter_config.json. base_id: never a local path.
  void Save(const std::string& directory, const std::string& base_id,
            const std::string& base_revision) const;

 private:
  LoraConfig config_;
  std::vector<Parameter> parameters_;
  std::vector<std::unique_ptr<LoraWeights>> by_module_;
};

}  // namespace offshoot::trainer
