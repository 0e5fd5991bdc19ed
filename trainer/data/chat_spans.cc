#include <algorithm>
#include <optional>
#include <string_view>

#include "trainer/data/row_encoder.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr std::size_t kNowhere = std::string::npos;

[[noreturn]] void FailChat(const std::string& message) { throw Error(Reason::kBadData, message); }

std::string Position(std::size_t message) { return "message " + std::to_string(message + 1); }

bool IsAssistant(const OrderedJson& message) { return message.at("role") == "assistant"; }

// OpenAI's per-message switch: "weight": 0 leaves an assistant message untrained.
bool IsTrained(const OrderedJson& message) {
  const auto weight = message.find("weight");
  return weight == message.end() || !weight->is_number() || weight->get<double>() != 0;
}

std::string Trimmed(const std::string& text) {
  constexpr const char* kSpaces = " \t\r\n\f\v";
  const std::size_t begin = text.find_first_not_of(kSpaces);
  if (begin == kNowhere) return "";
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

// Where an empty thinking block that the template has put at `begin`, not the data, ends.
std::size_t SkipEmptyThinking(const std::string& text, std::size_t begin) {
  constexpr std::string_view kOpen = "<think>";
  constexpr std::string_view kClose = "</think>";
  constexpr const char* kSpaces = " \t\r\n";
  if (text.compare(begin, kOpen.size(), kOpen) != 0) return begin;
  std::size_t at = text.find_first_not_of(kSpaces, begin + kOpen.size());
  if (at == kNowhere || text.compare(at, kClose.size(), kClose) != 0) return begin;
  at = text.find_first_not_of(kSpaces, at + kClose.size());
  return at == kNowhere ? begin : at;
}

bool HasOwnThinking(const OrderedJson& message) {
  for (const char* key : {"reasoning_content", "thinking", "reasoning"}) {
    const auto found = message.find(key);
    if (found != message.end() && found->is_string() && *found != "") return true;
  }
  return message.at("content").get_ref<const std::string&>().find("<think>") != kNowhere;
}

// The special tokens of the rendered text, to find ends of turns.
class SpecialTokens {
 public:
  SpecialTokens(const Tokenizer& tokenizer, const Tokenizer::Encoding& encoding)
      : tokenizer_(tokenizer), encoding_(encoding) {}

  struct Place {
    std::int64_t id;
    ByteSpan bytes;
  };
  // The last one inside [begin, end) if nothing but spaces follows it there.
  std::optional<Place> LastIn(ByteSpan span, const std::string& text) const {
    std::optional<Place> last;
    for (std::size_t t = 0; t < encoding_.ids.size(); ++t) {
      const ByteSpan& token = encoding_.byte_offsets[t];
      if (token.first < span.first || token.second > span.second) continue;
      if (IsEnd(encoding_.ids[t])) last = Place{encoding_.ids[t], token};
    }
    if (!last) return last;
    const std::string tail = text.substr(last->bytes.second, span.second - last->bytes.second);
    if (!Trimmed(tail).empty()) return std::nullopt;
    return last;
  }
  // The first one with this id from `begin` on.
  std::optional<Place> FirstFrom(std::size_t begin, std::int64_t id) const {
    for (std::size_t t = 0; t < encoding_.ids.size(); ++t) {
      const ByteSpan& token = encoding_.byte_offsets[t];
      if (token.first >= begin && encoding_.ids[t] == id) return Place{id, token};
    }
    return std::nullopt;
  }
  bool StartsAt(std::size_t begin) const {
    for (std::size_t t = 0; t < encoding_.ids.size(); ++t) {
      if (encoding_.byte_offsets[t].first == begin) return IsEnd(encoding_.ids[t]);
    }
    return false;
  }

 private:
  bool IsEnd(std::int64_t id) const {
    return tokenizer_.IsSpecial(id) || tokenizer_.eos_id() == id;
  }

  const Tokenizer& tokenizer_;
  const Tokenizer::Encoding& encoding_;
};

constexpr const char* kNoEndOfTurn =
    "the chat template ends the assistant's turn without a special token, so the model could not "
    "learn to stop; end it with the tokenizer's end-of-turn token";

// Spans as the template's own {% generation %} blocks give them.
std::vector<ByteSpan> SpansByBlocks(const ChatRendering& rendering, const OrderedJson& messages,
                                    const SpecialTokens& specials) {
  const auto& blocks = rendering.generation_spans;
  std::vector<std::size_t> assistants;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (IsAssistant(messages[i])) assistants.push_back(i);
  }
  const bool has_weights =
      std::any_of(messages.begin(), messages.end(),
                  [](const OrderedJson& message) { return !IsTrained(message); });
  if (has_weights && blocks.size() != assistants.size()) {
    FailChat(
        "a message has \"weight\": 0, but the chat template does not write one {% generation %} "
        "block for each assistant message");
  }
  std::vector<ByteSpan> spans;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].first == blocks[i].second) continue;
    if (has_weights && !IsTrained(messages[assistants[i]])) continue;
    spans.push_back(blocks[i]);
  }
  if (!spans.empty() && !specials.LastIn(spans.back(), rendering.text)) {
    FailChat(
        "the chat template's {% generation %} block leaves the end-of-turn token out, so the model "
        "could not learn to stop; move {% endgeneration %} behind it");
  }
  return spans;
}

// Where the assistant's words of message i begin, by rendering what comes before them.
std::size_t TurnBegin(const Tokenizer& tokenizer, const OrderedJson& messages, std::size_t i,
                      const std::string& text) {
  OrderedJson before = OrderedJson::array();
  for (std::size_t k = 0; k < i; ++k) before.push_back(messages[k]);
  std::string prefix;
  try {
    prefix = tokenizer.ApplyChatTemplate(before, true).text;
  } catch (const Error& error) {
    FailChat("the place of " + Position(i) +
             " cannot be found, because the messages before it cannot " +
             "be rendered alone: " + error.what());
  }
  if (!text.starts_with(prefix)) {
    FailChat(
        "the chat template writes the messages before " + Position(i) +
        " differently once that message follows, so its place cannot be found exactly; mark the "
        "assistant's text in the template with {% generation %} blocks");
  }
  return prefix.size();
}

// The text that the template writes between the messages before i and the words of message i: a
// turn's header, if it knows no generation prompt. Found with a stand-in for those words.
std::string Header(const Tokenizer& tokenizer, const OrderedJson& messages, std::size_t i,
                   std::size_t begin) {
  constexpr const char* kStandIn = "\u27eaoffshoot stand-in\u27eb";
  OrderedJson upto = OrderedJson::array();
  for (std::size_t k = 0; k < i; ++k) upto.push_back(messages[k]);
  upto.push_back({{"role", "assistant"}, {"content", kStandIn}});
  const std::string text = tokenizer.ApplyChatTemplate(upto, false).text;
  const std::size_t found = text.rfind(kStandIn);
  return found == kNowhere || found < begin ? "" : text.substr(begin, found - begin);
}

// Moves the begin behind what the template wrote and the model need not: a turn's header if the
// template knows no generation prompt, or an empty thinking block.
std::size_t SkipBoilerplate(const Tokenizer& tokenizer, const OrderedJson& messages, std::size_t i,
                            const std::string& text, std::size_t begin,
                            const SpecialTokens& specials) {
  if (HasOwnThinking(messages[i])) return begin;
  if (specials.StartsAt(begin)) {
    const std::string header = Header(tokenizer, messages, i, begin);
    if (text.compare(begin, header.size(), header) == 0) begin += header.size();
  }
  return SkipEmptyThinking(text, begin);
}

std::vector<ByteSpan> SpansByRendering(const Tokenizer& tokenizer, const OrderedJson& messages,
                                       const std::string& text, const SpecialTokens& specials) {
  std::vector<std::size_t> begins(messages.size(), kNowhere);
  std::size_t last = kNowhere;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (!IsAssistant(messages[i])) continue;
    begins[i] = TurnBegin(tokenizer, messages, i, text);
    last = i;
  }
  // How a turn ends is seen at the last assistant message: up to the next message or the end.
  std::size_t end = text.size();
  if (last + 1 < messages.size()) {
    OrderedJson upto = OrderedJson::array();
    for (std::size_t k = 0; k <= last; ++k) upto.push_back(messages[k]);
    const std::string prefix = tokenizer.ApplyChatTemplate(upto, false).text;
    if (text.starts_with(prefix)) end = prefix.size();
  }
  const auto final_end = specials.LastIn({begins[last], end}, text);
  if (!final_end) FailChat(kNoEndOfTurn);

  std::vector<ByteSpan> spans;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (begins[i] == kNowhere || !IsTrained(messages[i])) continue;
    const std::size_t begin = SkipBoilerplate(tokenizer, messages, i, text, begins[i], specials);
    const auto turn_end = i == last ? final_end : specials.FirstFrom(begin, final_end->id);
    if (!turn_end || turn_end->bytes.second <= begin) FailChat(kNoEndOfTurn);
    spans.emplace_back(begin, turn_end->bytes.second);
  }
  return spans;
}

}  // namespace

ChatSpans FindChatSpans(const Tokenizer& tokenizer, const nlohmann::ordered_json& messages) {
  ChatSpans result;
  const ChatRendering rendering = tokenizer.ApplyChatTemplate(messages, false);
  result.text = rendering.text;
  // The template writes BOS itself, so the tokenizer must not.
  result.encoding = tokenizer.EncodeWithOffsets(result.text, false);
  const SpecialTokens specials(tokenizer, result.encoding);
  result.spans = tokenizer.template_has_generation_blocks()
                     ? SpansByBlocks(rendering, messages, specials)
                     : SpansByRendering(tokenizer, messages, result.text, specials);
  return result;
}

}  // namespace offshoot::trainer
