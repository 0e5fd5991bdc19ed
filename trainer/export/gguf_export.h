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
// and routers as F32, each rounded once from base + adapter in float32; of a layer's stacked
// experts one at a time is in memory. Families: those of weights/gguf_families.cc. decoder: of this
// base; weights need not be loaded.
void WriteMergedGguf(const BaseModelFiles& base, const Decoder& decoder,
                     const AdapterByPath& adapters, const Tokenizer& tokenizer,
                     const std::string& path, const std::string& type, const std::string& name);

// Throws what WriteMergedGguf and WriteGgufAdapter would for this base, writing nothing. tokenizer
// may be null, which is a fault.
void CheckGgufExport(const BaseModelFiles& base, const ArchSpec& spec, const Tokenizer* tokenizer,
                     const std::string& type);

// The adapter alone, as llama.cpp's convert_lora_to_gguf.py writes it, in float32. The format has
// one alpha: where a module's scaling is another (rsLoRA, patterns), its B takes the difference.
// Experts' pairs are stacked: *_exps.weight.lora_a [experts, rank, in], .lora_b [experts, out,
// rank].
// Error(kInternal) where HasGgufAdapter is false: llama.cpp's graph of latent attention takes no
// notice of an adapter's pairs.
bool HasGgufAdapter(const ArchSpec& spec);
void WriteGgufAdapter(const ArchSpec& spec, const AdapterByPath& adapters, const std::string& path,
                      const std::string& name);

}  // namespace offshoot::trainer
