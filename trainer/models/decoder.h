// The one decoder: every family is an ArchSpec (arch_spec.h) that drives it.
//
// The weights are frozen and shared (several jobs may use one Decoder in one process); what is
// trained belongs to a LoraSet that is passed in.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "trainer/data/token_batch.h"
#include "trainer/models/arch_spec.h"
#include "trainer/ops/ops.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

class LoraSet;  // trainer/lora/lora_set.h

struct DecoderOptions {
  at::ScalarType dtype = at::kFloat;
  std::string device = "cpu";
};

struct ForwardOptions {
  bool recompute_activations = false;   // gradient checkpointing, layer by layer
  std::uint64_t dropout_seed = 0;       // of this micro-batch; only read when training
  bool training = false;
};

class Decoder {
 public:
  // Loads tensor by tensor. All missing, extra and mis-shaped tensors are named in one
  // Error(kBadModel).
  static std::unique_ptr<Decoder> Load(const BaseModelFiles& files, const DecoderOptions& options);
  virtual ~Decoder() = default;

  virtual const ArchSpec& spec() const = 0;
  // Final normed hidden states [T, H]; adapters may be null.
  virtual at::Tensor Forward(const TokenBatch& batch, const LoraSet* adapters,
                             const ForwardOptions& options) const = 0;
  virtual const std::shared_ptr<const FrozenLinear>& head() const = 0;
  // Every linear layer that LoRA can target, by its Hugging Face module path
  // (model.layers.0.self_attn.q_proj), in forward order.
  struct LinearModule {
    std::string path;
    std::shared_ptr<const FrozenLinear> base;
  };
  virtual const std::vector<LinearModule>& linear_modules() const = 0;
};

}  // namespace offshoot::trainer
