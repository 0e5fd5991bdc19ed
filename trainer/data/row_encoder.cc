#include "trainer/data/row_encoder.h"

#include "trainer/data/token_batch.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr auto kIgnored = static_cast<std::int32_t>(kIgnoredLabel);

bool Touches(const ByteSpan& token, const ByteSpan& span) {
  return token.first < span.second && token.second > span.first;
}

}  // namespace

void RowEncoder::CheckTokenizer(DataType type) const {
  if (tokenizer_ == nullptr && type != DataType::kPretokenized) {
    throw Error(Reason::kBadModel,
                "the base model has no tokenizer.json, so only type: pretokenized can be trained; "
                "save its tokenizer there with AutoTokenizer.from_pretrained(...).save_pretrained");
  }
  switch (type) {
    case DataType::kChat:
      if (!tokenizer_->has_chat_template()) {
        throw Error(Reason::kBadModel,
                    "the base model has no chat template, which type: chat needs; put one into "
                    "chat_template.jinja beside its tokenizer.json, or use type: completion");
      }
      return;
    case DataType::kCompletion:
    case DataType::kText:
      if (!tokenizer_->eos_id().has_value()) {
        throw Error(Reason::kBadModel,
                    "the base model's tokenizer names no eos_token, so rows cannot be ended; set "
                    "eos_token in its tokenizer_config.json");
      }
      return;
    case DataType::kPretokenized:
      return;
  }
}

TokenRow RowEncoder::Encode(DataType type, const nlohmann::ordered_json& line) const {
  TokenRow row;
  switch (type) {
    case DataType::kChat:
      row = EncodeChat(ParseChat(line));
      break;
    case DataType::kCompletion:
      row = EncodeCompletion(ParseCompletion(line));
      break;
    case DataType::kText:
      row = EncodeText(ParseText(line));
      break;
    case DataType::kPretokenized:
      row = ParsePretokenized(line, vocab_size_);
      break;
  }
  Check(row);
  return row;
}

TokenRow RowEncoder::EncodeChat(const nlohmann::ordered_json& messages) const {
  const ChatSpans chat = FindChatSpans(*tokenizer_, messages);
  return Label(chat.encoding, chat.spans);
}

TokenRow RowEncoder::EncodeCompletion(const PromptCompletion& example) const {
  const std::string text = example.prompt + example.completion;
  TokenRow row =
      Label(tokenizer_->EncodeWithOffsets(text, true), {{example.prompt.size(), text.size()}});
  AppendEos(&row);
  return row;
}

TokenRow RowEncoder::EncodeText(const std::string& text) const {
  TokenRow row = Label(tokenizer_->EncodeWithOffsets(text, true), {{0, text.size()}});
  AppendEos(&row);
  return row;
}

TokenRow RowEncoder::Label(const Tokenizer::Encoding& encoding,
                           const std::vector<ByteSpan>& spans) const {
  TokenRow row;
  row.ids.assign(encoding.ids.begin(), encoding.ids.end());
  row.labels.assign(row.ids.size(), kIgnored);
  std::size_t next = 0;  // tokens and spans are both in order
  for (std::size_t t = 1; t < row.ids.size(); ++t) {
    const ByteSpan& token = encoding.byte_offsets[t];
    while (next < spans.size() && spans[next].second <= token.first) ++next;
    if (next < spans.size() && Touches(token, spans[next])) row.labels[t] = row.ids[t];
  }
  return row;
}

void RowEncoder::AppendEos(TokenRow* row) const {
  const auto eos = static_cast<std::int32_t>(tokenizer_->eos_id().value());
  if (row->ids.empty() || row->ids.back() != eos) {
    row->ids.push_back(eos);
    row->labels.push_back(eos);
  } else {
    row->labels.back() = eos;  // the tokenizer, or the text, has ended it already
  }
}

void RowEncoder::Check(const TokenRow& row) const {
  if (tokenizer_ == nullptr) return;  // pretokenized rows were checked as they were read
  const std::optional<std::int64_t> bos = tokenizer_->bos_id();
  if (bos && row.ids.size() > 1 && row.ids[0] == *bos && row.ids[1] == *bos) {
    throw Error(Reason::kBadData,
                "it begins with two BOS tokens: the text and the tokenizer both write one; remove "
                "the BOS from the text or set add_bos_token to false");
  }
  for (const std::int32_t id : row.ids) {
    if (id < vocab_size_) continue;
    throw Error(Reason::kBadData, "it has the token " + std::to_string(id) + " (\"" +
                                      tokenizer_->Decode({id}, false) +
                                      "\"), but the base model's vocabulary has " +
                                      std::to_string(vocab_size_) +
                                      " tokens; tokenizer and model do not belong together");
  }
}

}  // namespace offshoot::trainer
