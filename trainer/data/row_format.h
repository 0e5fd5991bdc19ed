// What the lines of a data set look like, brought to one shape per kind.
//
// chat           {"messages": [{"role", "content"}]} (OpenAI), {"conversations": [{"from",
// "value"}]}
//                (ShareGPT) or {"instruction", "input", "output"} (Alpaca)
// completion     {"prompt", "completion"}
// text           {"text"}
// pretokenized   {"input_ids", "labels"}; without labels every token is trained
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace offshoot::trainer {

// All of these throw Error(kBadData) with what is wrong in the line and the remedy; the caller adds
// file and line.

// [{"role", "content": string, ...}], with at least one assistant message. Other keys of a message
// are kept for the template.
nlohmann::ordered_json ParseChat(const nlohmann::ordered_json& line);

struct PromptCompletion {
  std::string prompt;
  std::string completion;
};
PromptCompletion ParseCompletion(const nlohmann::ordered_json& line);

std::string ParseText(const nlohmann::ordered_json& line);

struct TokenRow {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> labels;  // kIgnoredLabel where not trained
};
TokenRow ParsePretokenized(const nlohmann::ordered_json& line, std::int64_t vocab_size);

}  // namespace offshoot::trainer
