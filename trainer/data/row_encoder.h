// One example to token ids and labels.
//
// Where a chat is trained: on what the assistant says and the token that ends its turn, found
//  - by the template's {% generation %} blocks, if it has any; or
//  - by rendering: an assistant turn begins where the rendering of the messages before it, with the
//    generation prompt, ends (it must be a prefix of the whole rendering), and ends with the turn's
//    last special token, as the end of the conversation shows it.
// A token is trained if any of its bytes lies inside a span, as transformers'
// return_assistant_tokens_mask has it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "trainer/data/dataset.h"
#include "trainer/data/row_format.h"
#include "trainer/tokenizer/tokenizer.h"

namespace offshoot::trainer {

using ByteSpan = std::pair<std::size_t, std::size_t>;  // [begin, end)

// Stateless besides what it refers to; thread-safe.
class RowEncoder {
 public:
  // tokenizer: null if the base has none; then only pretokenized rows can be read.
  RowEncoder(const Tokenizer* tokenizer, std::int64_t vocab_size)
      : tokenizer_(tokenizer), vocab_size_(vocab_size) {}

  // Throws Error(kBadModel) if type needs something that the tokenizer lacks (a chat template, an
  // end-of-sequence token).
  void CheckTokenizer(DataType type) const;

  // Not cut yet. Throws Error(kBadData) without file and line.
  TokenRow Encode(DataType type, const nlohmann::ordered_json& line) const;

 private:
  TokenRow EncodeChat(const nlohmann::ordered_json& messages) const;
  TokenRow EncodeCompletion(const PromptCompletion& example) const;
  TokenRow EncodeText(const std::string& text) const;
  TokenRow Label(const Tokenizer::Encoding& encoding, const std::vector<ByteSpan>& spans) const;
  void AppendEos(TokenRow* row) const;
  void Check(const TokenRow& row) const;

  const Tokenizer* const tokenizer_;
  const std::int64_t vocab_size_;
};

// The spans of the rendered conversation that are trained, in order; exposed for tests.
// Throws Error(kBadData) if they cannot be found exactly.
struct ChatSpans {
  std::string text;
  Tokenizer::Encoding encoding;  // of text, without special tokens added
  std::vector<ByteSpan> spans;
};
ChatSpans FindChatSpans(const Tokenizer& tokenizer, const nlohmann::ordered_json& messages);

}  // namespace offshoot::trainer
