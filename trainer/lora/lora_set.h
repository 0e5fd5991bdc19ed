// The adapters of one job: which modules have one, their weights, reading and writing PEFT's
// layout.
//
// The decoder must outlive its sets. One job owns one set; not thread-safe while it is changed,
// safe to read from many threads. The parts: lora_targets.h (which modules), peft_config.h
// (adapter_config.json).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/lora/lora_config.h"
#include "trainer/lora/lora_targets.h"
#include "trainer/models/adapters.h"
#include "trainer/models/decoder.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {

class LoraSet final : public Adapters {
 public:
  // PEFT's default start: A uniform in +-1/sqrt(in) (kaiming_uniform with a = sqrt(5)), B zero,
  // drawn in float32 in module order from `seed` alone.
  // Throws Error(kBadSpec) naming a target that matches nothing, with the names there are.
  static std::unique_ptr<LoraSet> Create(const Decoder& decoder, const LoraConfig& config,
                                         std::uint64_t seed);
  // Reads a PEFT directory. Throws Error(kBadModel) with all missing, extra and mis-shaped tensors,
  // or naming the setting of adapter_config.json that is not supported.
  static std::unique_ptr<LoraSet> Load(const Decoder& decoder, const std::string& directory);

  const LoraConfig& config() const { return config_; }
  // Null if the module has no adapter. `module` indexes Decoder::linear_modules().
  const LoraWeights* Find(std::size_t module) const override;

  // Parameters in a fixed order with PEFT's names (base_model.model.<path>.lora_A.weight).
  struct Parameter {
    std::string name;
    at::Tensor tensor;  // float32 leaf
  };
  const std::vector<Parameter>& parameters() const { return parameters_; }
  std::int64_t parameter_count() const;
  std::vector<std::string> target_module_names() const;  // as adapter_config.json lists them

  void SetEnabled(bool enabled);  // false: the base alone
  void SetDropout(double probability);
  // adapter_model.safetensors + adapter_config.json. base_id: never a local path. Experts are
  // written one by one, or in PEFT's fused layout where they were targeted or read so, or where
  // PEFT could not load the other (it converts only whole experts of the common rank).
  void Save(const std::string& directory, const std::string& base_id,
            const std::string& base_revision) const;

 private:
  LoraSet(const Decoder& decoder, LoraConfig config);
  // fused: an up projection that shares A with the gate before it, if that is fused too.
  void Add(std::size_t module, const LoraSize& size, at::Tensor a, at::Tensor b, bool fused);
  bool SharesA(std::size_t module, bool fused) const;
  bool WrittenFused() const;

  const Decoder& decoder_;
  LoraConfig config_;
  std::vector<int> expert_part_;  // by module: 0 gate, 1 up, 2 down of an expert, or -1
  std::vector<LoraSize> sizes_;   // by module
  std::vector<bool> fused_;       // by module
  std::vector<Parameter> parameters_;
  std::vector<std::unique_ptr<LoraWeights>> by_module_;
  TargetNames targets_;
};

}  // namespace offshoot::trainer
