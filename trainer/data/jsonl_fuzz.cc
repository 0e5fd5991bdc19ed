// Any bytes as a data set: each kind of row is parsed, encoded and cut, or refused with an Error.
// The chat template and tokenizer are small ones made here, so that the target needs no files.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <sstream>
#include <string>

#include "trainer/data/jsonl_reader.h"
#include "trainer/data/row_encoder.h"
#include "trainer/error.h"
#include "trainer/tokenizer/tokenizer.h"

namespace offshoot::trainer {
namespace {

// Printable ASCII, one token a character (other bytes are unknown to it and vanish), two special
// tokens and a chat template.
std::unique_ptr<Tokenizer> SmallTokenizer() {
  nlohmann::json tokens = {"<|im_start|>", "<|im_end|>"};
  nlohmann::json types = {3, 3};
  for (char c = 0x21; c < 0x7F; ++c) {
    tokens.push_back(std::string(1, c));
    types.push_back(1);
  }
  tokens.push_back(" ");
  types.push_back(1);
  return Tokenizer::FromGguf(
      {{"tokenizer.ggml.model", "gpt2"},
       {"tokenizer.ggml.tokens", tokens},
       {"tokenizer.ggml.token_type", types},
       {"tokenizer.ggml.merges", nlohmann::json::array()},
       {"tokenizer.ggml.bos_token_id", 0},
       {"tokenizer.ggml.eos_token_id", 1},
       {"tokenizer.chat_template",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"}});
}

}  // namespace
}  // namespace offshoot::trainer

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace offshoot::trainer;  // NOLINT: the one function of this file
  static const std::unique_ptr<Tokenizer> tokenizer = SmallTokenizer();
  const RowEncoder encoder(tokenizer.get(), tokenizer->vocab_size());
  std::istringstream text(std::string(reinterpret_cast<const char*>(data), size));
  for (std::string line; std::getline(text, line);) {
    for (const DataType type :
         {DataType::kChat, DataType::kCompletion, DataType::kText, DataType::kPretokenized}) {
      try {
        const TokenRow row = encoder.Encode(type, ParseJsonLine(line));
        if (row.ids.size() != row.labels.size()) __builtin_trap();
      } catch (const Error&) {
        // Refused with a sentence: what is wanted of bad input.
      }
    }
  }
  return 0;
}
