// Generating text: token by token with a cache, greedy or sampled. Used by the `generate` command
// and for the sample that a finished job shows.
//
// Pure but for the caller's callback: the same inputs, options and weights give the same tokens.
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trainer/models/decoder.h"
#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

struct GenerateOptions {
  std::int64_t max_new_tokens = 256;
  double temperature = 0.0;  // 0: greedy
  double top_p = 1.0;        // keep the likeliest tokens that together reach this probability
  std::int64_t top_k = 0;    // keep this many; 0: all
  std::uint64_t seed = 0;
  std::vector<std::int64_t> stop_ids;  // end of sequence, end of turn
};

struct Generation {
  std::vector<std::int64_t> ids;  // without the token that stopped it
  bool stopped = false;           // by a stop token; else by max_new_tokens
};

// prompt: token ids, at least one. on_token (may be empty) sees each token as it is chosen.
// Throws Error(kBadData) for an empty prompt or an id that the vocabulary does not have.
Generation Generate(const Decoder& decoder, const Adapters* adapters,
                    const std::vector<std::int64_t>& prompt, const GenerateOptions& options,
                    const std::function<void(std::int64_t)>& on_token = {});

// The next token for logits float32 [V]: temperature, then top-k, then top-p as transformers
// orders them; `uniform` in [0, 1) decides. Greedy at temperature 0.
std::int64_t ChooseToken(const at::Tensor& logits, const GenerateOptions& options, double uniform);

// The prompt as one user message through the chat template with a generation prompt; as plain text
// with the tokenizer's special tokens if raw or if there is no template.
std::vector<std::int64_t> EncodePrompt(const Tokenizer& tokenizer, const std::string& prompt,
                                       bool raw);

// Tokens that end an answer: eos_token_id of generation_config.json and config.json, the
// tokenizer's, and what the chat template puts after an assistant's turn.
std::vector<std::int64_t> StopIds(const Tokenizer& tokenizer, const BaseModelFiles& files);

}  // namespace offshoot::trainer
