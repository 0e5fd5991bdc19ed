// A tokenizer as GGUF metadata (tokenizer.ggml.*, tokenizer.chat_template), as llama.cpp's
// convert_hf_to_gguf.py writes it.
#pragma once

#include <cstdint>

#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/gguf_writer.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

// A GGUF base's own keys as they are; for a directory, made of its tokenizer.json (byte-level BPE
// whose splitting llama.cpp knows). vocab_size: rows of the embedding. Throws Error(kBadModel)
// naming what GGUF has no word for.
void AddTokenizer(const BaseModelFiles& base, const Tokenizer& tokenizer, std::int64_t vocab_size,
                  GgufMetadata& metadata);

}  // namespace offshoot::trainer
