// Base + LoRA written as a plain model that transformers, vLLM and others load.
//
// Each weight is W + scaling * B * A computed in float32 and rounded once to the dtype it is stored
// in; one tensor (and a strip of its float32) is in memory at a time. Functions are thread-safe for
// different directories. Errors: Error(kBadModel) naming a tensor, Error(kDiskFull).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

#include "trainer/lora/lora_set.h"
#include "trainer/models/decoder.h"
#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

// Module path (model.layers.0.self_attn.q_proj) -> its pair. Borrowed from a LoraSet.
using AdapterByPath = std::map<std::string, const LoraWeights*>;
AdapterByPath AdaptersByPath(const Decoder& decoder, const LoraSet& adapters);

struct MergedModelOptions {
  // Of weights that the base stores quantised (GGUF, FP8), and of all weights of a GGUF base.
  // Others keep the dtype in which the base stores them.
  at::ScalarType dtype = at::kBFloat16;
  // A file grows no larger, unless one tensor is.
  std::int64_t shard_bytes = 5'000'000'000;
};

// Writes model.safetensors (or shards with their index), config.json, generation_config.json, the
// base's licence texts and, if tokenizer is not null, its files into an existing directory.
void WriteMergedModel(const BaseModelFiles& base, const AdapterByPath& adapters,
                      const Tokenizer* tokenizer, const std::string& directory,
                      const MergedModelOptions& options);

// One tensor of the merged model: W + scaling * B * A where its module has an adapter, else the
// base's.
at::Tensor MergedTensor(const BaseModelFiles& base, const AdapterByPath& adapters,
                        const std::string& name, at::ScalarType dtype);

// Throws Error(kBadModel) naming a tensor of the merged model that is missing or is not, bit for
// bit, what WriteMergedModel makes of base and adapters.
void CheckMergedWeights(const BaseModelFiles& base, const AdapterByPath& adapters,
                        const BaseModelFiles& merged);

}  // namespace offshoot::trainer
