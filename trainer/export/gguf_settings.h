// A model as GGUF sees it: what its layers have in common, and the metadata that says so.
// Pure; thread-safe. Errors: Error(kBadModel) naming what llama.cpp has no word for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "trainer/models/arch_spec.h"
#include "trainer/weights/gguf_architectures.h"
#include "trainer/weights/gguf_writer.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

struct GgufModel {
  const ArchSpec* spec = nullptr;
  const GgufArchitecture* architecture = nullptr;
  // Softmax or latent.
  AttentionSpec attention;
  std::optional<DenseMlpSpec> dense;
  std::optional<MoeSpec> moe;
  // Experts are in the layers from here on.
  std::int64_t leading_dense = 0;
  RotarySpec rotary;
};

// Borrows the spec. Throws for layers that differ or that llama.cpp's graph of the family would
// compute otherwise.
GgufModel DescribeForGguf(const ArchSpec& spec);

// general.* and the architecture's keys; the tokenizer's are AddTokenizer's. type: of matrices.
GgufMetadata GgufSettings(const GgufModel& model, const BaseModelFiles& base,
                          const std::string& type, const std::string& name);

// llama.cpp's number of a file's type. Throws Error(kBadSpec) for a type that is not written.
std::uint32_t GgufFileType(const std::string& type);

[[noreturn]] void RefuseGguf(const std::string& fault);

}  // namespace offshoot::trainer
