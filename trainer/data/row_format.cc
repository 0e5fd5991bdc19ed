#include "trainer/data/row_format.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "trainer/data/token_batch.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using OrderedJson = nlohmann::ordered_json;

[[noreturn]] void Fail(const std::string& message) { throw Error(Reason::kBadData, message); }

std::string Quoted(const std::string& text) {
  constexpr std::size_t kShown = 40;
  return "\"" + (text.size() > kShown ? text.substr(0, kShown) + "..." : text) + "\"";
}

std::string Keys(const OrderedJson& line) {
  std::string keys;
  std::size_t count = 0;
  for (const auto& [key, value] : line.items()) {
    if (++count > 8) return keys + ", ...";
    keys += (keys.empty() ? "" : ", ") + Quoted(key);
  }
  return keys.empty() ? "none" : keys;
}

const std::string& StringAt(const OrderedJson& object, const char* key, const std::string& owner) {
  const auto found = object.find(key);
  if (found == object.end()) {
    Fail(owner + " has no \"" + key + "\" (its keys: " + Keys(object) + ")");
  }
  if (!found->is_string()) {
    Fail("\"" + std::string(key) + "\" of " + owner + " is a " + found->type_name() +
         "; it must be a string");
  }
  return found->get_ref<const std::string&>();
}

constexpr std::array<std::string_view, 6> kRoles = {"system",    "developer", "user",
                                                    "assistant", "tool",      "function"};

// A string, null beside tool calls, or OpenAI's list of text parts.
OrderedJson Content(const OrderedJson& message, const std::string& owner) {
  const auto found = message.find("content");
  const bool has_calls = message.contains("tool_calls");
  if (found == message.end() || found->is_null()) {
    if (has_calls) return "";
    Fail(owner + " has no \"content\" (its keys: " + Keys(message) + ")");
  }
  if (found->is_string()) return *found;
  if (!found->is_array()) {
    Fail("\"content\" of " + owner + " is a " + found->type_name() + "; it must be a string");
  }
  std::string text;
  for (const OrderedJson& part : *found) {
    const bool is_text = part.is_object() && part.value("type", OrderedJson()) == "text" &&
                         part.contains("text") && part["text"].is_string();
    if (!is_text) Fail("\"content\" of " + owner + " has a part that is not text");
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

OrderedJson OpenAiMessages(const OrderedJson& messages) {
  OrderedJson result = OrderedJson::array();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const std::string owner = "message " + std::to_string(i + 1);
    if (!messages[i].is_object()) Fail(owner + " is a " + messages[i].type_name());
    const std::string& role = StringAt(messages[i], "role", owner);
    if (std::find(kRoles.begin(), kRoles.end(), role) == kRoles.end()) {
      Fail(owner + " has the role " + Quoted(role) +
           "; known are system, developer, user, assistant, tool and function");
    }
    OrderedJson message = messages[i];
    message["content"] = Content(messages[i], owner);
    result.push_back(std::move(message));
  }
  return result;
}

OrderedJson ShareGptMessages(const OrderedJson& turns) {
  constexpr std::array<std::array<const char*, 2>, 12> kNames = {{{"human", "user"},
                                                                  {"user", "user"},
                                                                  {"gpt", "assistant"},
                                                                  {"assistant", "assistant"},
                                                                  {"chatgpt", "assistant"},
                                                                  {"bing", "assistant"},
                                                                  {"bard", "assistant"},
                                                                  {"model", "assistant"},
                                                                  {"system", "system"},
                                                                  {"tool", "tool"},
                                                                  {"function_response", "tool"},
                                                                  {"observation", "tool"}}};
  OrderedJson result = OrderedJson::array();
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const std::string owner = "turn " + std::to_string(i + 1);
    if (!turns[i].is_object()) Fail(owner + " is a " + turns[i].type_name());
    const std::string& from = StringAt(turns[i], "from", owner);
    const auto name = std::find_if(kNames.begin(), kNames.end(),
                                   [&from](const auto& pair) { return pair[0] == from; });
    if (name == kNames.end()) {
      Fail(owner + " is \"from\" " + Quoted(from) +
           "; known are human, user, gpt, assistant, model, system and tool");
    }
    result.push_back({{"role", (*name)[1]}, {"content", StringAt(turns[i], "value", owner)}});
  }
  return result;
}

OrderedJson AlpacaMessages(const OrderedJson& line) {
  std::string question = StringAt(line, "instruction", "the line");
  if (line.contains("input") && !line["input"].is_null()) {
    const std::string& input = StringAt(line, "input", "the line");
    if (!input.empty()) question += "\n\n" + input;
  }
  OrderedJson result = OrderedJson::array();
  if (line.contains("system") && line["system"].is_string() && line["system"] != "") {
    result.push_back({{"role", "system"}, {"content", line["system"]}});
  }
  result.push_back({{"role", "user"}, {"content", std::move(question)}});
  result.push_back({{"role", "assistant"}, {"content", StringAt(line, "output", "the line")}});
  return result;
}

const OrderedJson& ArrayAt(const OrderedJson& line, const char* key) {
  const OrderedJson& value = line.at(key);
  if (!value.is_array()) {
    Fail("\"" + std::string(key) + "\" is a " + value.type_name() + "; it must be an array");
  }
  return value;
}

std::vector<std::int32_t> Integers(const OrderedJson& line, const char* key,
                                   std::int64_t vocab_size, bool may_be_ignored) {
  std::vector<std::int32_t> result;
  const OrderedJson& values = ArrayAt(line, key);
  result.reserve(values.size());
  for (const OrderedJson& value : values) {
    if (!value.is_number_integer()) {
      Fail("\"" + std::string(key) + "\" has an entry that is no integer");
    }
    const auto number = value.get<std::int64_t>();
    if (may_be_ignored && number == kIgnoredLabel) {
      result.push_back(static_cast<std::int32_t>(number));
      continue;
    }
    if (number < 0 || number >= vocab_size) {
      Fail("\"" + std::string(key) + "\" has the token " + std::to_string(number) +
           ", but the base model's vocabulary has " + std::to_string(vocab_size) +
           " tokens; tokenise with the base model's own tokenizer");
    }
    result.push_back(static_cast<std::int32_t>(number));
  }
  return result;
}

}  // namespace

nlohmann::ordered_json ParseChat(const nlohmann::ordered_json& line) {
  OrderedJson messages;
  if (line.contains("messages")) {
    messages = OpenAiMessages(ArrayAt(line, "messages"));
  } else if (line.contains("conversations")) {
    messages = ShareGptMessages(ArrayAt(line, "conversations"));
  } else if (line.contains("instruction")) {
    messages = AlpacaMessages(line);
  } else {
    Fail("it has no \"messages\" (its keys: " + Keys(line) +
         "); type chat wants {\"messages\": [{\"role\", \"content\"}]}");
  }
  for (const OrderedJson& message : messages) {
    if (message["role"] == "assistant") return messages;
  }
  Fail("it has no assistant message, so there is nothing to train on; remove the line");
}

PromptCompletion ParseCompletion(const nlohmann::ordered_json& line) {
  PromptCompletion result = {StringAt(line, "prompt", "the line"),
                             StringAt(line, "completion", "the line")};
  if (result.completion.empty()) {
    Fail("its \"completion\" is empty, so there is nothing to train on; remove the line");
  }
  return result;
}

std::string ParseText(const nlohmann::ordered_json& line) {
  const std::string& text = StringAt(line, "text", "the line");
  if (text.empty()) Fail("its \"text\" is empty; remove the line");
  return text;
}

TokenRow ParsePretokenized(const nlohmann::ordered_json& line, std::int64_t vocab_size) {
  if (!line.contains("input_ids")) {
    Fail("it has no \"input_ids\" (its keys: " + Keys(line) + ")");
  }
  TokenRow row;
  row.ids = Integers(line, "input_ids", vocab_size, false);
  if (row.ids.empty()) Fail("its \"input_ids\" are empty; remove the line");
  if (line.contains("attention_mask")) {
    for (const OrderedJson& value : ArrayAt(line, "attention_mask")) {
      if (value != 1) {
        Fail("its \"attention_mask\" has an entry other than 1; rows must come without padding");
      }
    }
  }
  row.labels = line.contains("labels") ? Integers(line, "labels", vocab_size, true) : row.ids;
  if (row.labels.size() != row.ids.size()) {
    Fail("it has " + std::to_string(row.ids.size()) + " input_ids but " +
         std::to_string(row.labels.size()) + " labels; there must be one label for each token");
  }
  row.labels[0] = static_cast<std::int32_t>(kIgnoredLabel);
  return row;
}

}  // namespace offshoot::trainer
