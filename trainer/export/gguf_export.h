// Base + LoRA as one GGUF file for llama.cpp, Ollama and others.
//
// Thread-safe for different paths. Errors: Error(kBadModel) naming what GGUF cannot hold,
// Error(kDiskFull).
#pragma once

#include <string>

#include "trainer/export/merged_model.h"
#include "trainer/models/decoder.h"
#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

// Matrices as `type` (F32, F16, BF16 or Q8_0; F16 where Q8_0's blocks do not divide a row), vectors
// as F32, each rounded once from base + adapter in float32. Families: those of
// weights/gguf_architectures.h. decoder: of this base; weights need not be loaded.
void WriteMergedGguf(const BaseModelFiles& base, const Decoder& decoder,
                     const AdapterByPath& adapters, const Tokenizer& tokenizer,
                     const std::string& path, const std::string& type, const std::string& name);

}  // namespace offshoot::trainer
