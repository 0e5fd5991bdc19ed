#include "trainer/data/row_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/data/data_testing.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::ordered_json;
using testing::ElementsAre;
using testing::HasSubstr;

Json Turn(const char* role, const char* content) { return {{"role", role}, {"content", content}}; }

// The text of each span that is trained.
std::vector<std::string> TrainedText(const Tokenizer& tokenizer, const Json& messages) {
  const ChatSpans chat = FindChatSpans(tokenizer, messages);
  std::vector<std::string> texts;
  for (const auto& [begin, end] : chat.spans) texts.push_back(chat.text.substr(begin, end - begin));
  return texts;
}

std::string Complaint(const Tokenizer& tokenizer, const Json& messages) {
  try {
    FindChatSpans(tokenizer, messages);
  } catch (const Error& error) {
    return error.what();
  }
  return "no complaint";
}

const Json& TwoTurns() {
  static const Json messages = {Turn("user", "One?"), Turn("assistant", "Yes, one."),
                                Turn("user", "Two?"), Turn("assistant", "No, <b>two</b>.\n")};
  return messages;
}

TEST(FindChatSpans, ChatMl_AnswersAndTheirEndOfTurn) {
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("chatml.jinja"), TwoTurns()),
              ElementsAre("Yes, one.<|im_end|>", "No, <b>two</b>.\n<|im_end|>"));
}

TEST(FindChatSpans, TemplateWithoutGenerationPrompt_HeaderIsNotTrained) {
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("chatml_without_prompt.jinja"), TwoTurns()),
              ElementsAre("Yes, one.<|im_end|>", "No, <b>two</b>.<|im_end|>"));
  // Words that occur in the header too.
  const Json messages = {Turn("user", "a"), Turn("assistant", "assistant")};
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("chatml_without_prompt.jinja"), messages),
              ElementsAre("assistant<|im_end|>"));
}

TEST(FindChatSpans, Llama3_AnswersAndTheirEndOfTurn) {
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("llama3.jinja"), TwoTurns()),
              ElementsAre("Yes, one.<|eot_id|>", "No, <b>two</b>.<|eot_id|>"));
}

TEST(FindChatSpans, Instruct_SpaceBeforeTheAnswerIsTheModels) {
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("instruct.jinja"), TwoTurns()),
              ElementsAre(" Yes, one.<|eot_id|>", " No, <b>two</b>.\n<|eot_id|>"));
}

TEST(FindChatSpans, ConversationEndsWithUser_LastAnswerEndsAtItsToken) {
  Json messages = TwoTurns();
  messages.push_back(Turn("user", "Three?"));
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("chatml.jinja"), messages),
              ElementsAre("Yes, one.<|im_end|>", "No, <b>two</b>.\n<|im_end|>"));
}

TEST(FindChatSpans, Thinking_EmptyBlockOfTheTemplateIsNotTrained) {
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("thinking.jinja"), TwoTurns()),
              ElementsAre("Yes, one.<|im_end|>", "No, <b>two</b>.\n<|im_end|>"));
}

TEST(FindChatSpans, Thinking_ReasoningOfTheDataIsTrainedWhereTheTemplateKeepsIt) {
  Json messages = {Turn("user", "2+2"), Turn("assistant", "<think>\nadd\n</think>\n\n4"),
                   Turn("user", "3+3"), Turn("assistant", "6")};
  messages[3]["reasoning_content"] = "add again";
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("thinking.jinja"), messages),
              ElementsAre("4<|im_end|>", "<think>\nadd again\n</think>\n\n6<|im_end|>"));
}

TEST(FindChatSpans, ToolCalls_AreTrained) {
  Json messages = {Turn("user", "Weather?"), Turn("assistant", ""), Turn("tool", "sun"),
                   Turn("assistant", "Sunny.")};
  messages[1]["tool_calls"] =
      Json::parse(R"([{"function": {"name": "w", "arguments": {"z": 1, "a": "b"}}}])");
  EXPECT_THAT(TrainedText(*TokenizerWithTemplate("thinking.jinja"), messages),
              ElementsAre("<tool_call>\n{\"name\": \"w\", \"arguments\": {\"z\": 1, \"a\": "
                          "\"b\"}}\n</tool_call><|im_end|>",
                          "Sunny.<|im_end|>"));
}

TEST(FindChatSpans, GenerationBlocks_EqualTransformersMask) {
  int compared = 0;
  for (const Json& one : Json::parse(ReadTestFile(kTokenizerTestData / "chats.json"))) {
    if (!one.contains("assistant_mask") || one["add_generation_prompt"]) continue;
    bool has_answer = false;
    for (const Json& message : one["messages"]) has_answer |= message["role"] == "assistant";
    if (!has_answer) continue;
    SCOPED_TRACE(one["template"].dump() + one["chat"].dump());
    const auto tokenizer = TokenizerWithTemplate(one["template"]);
    const RowEncoder encoder(tokenizer.get(), tokenizer->vocab_size());
    const TokenRow row = encoder.Encode(DataType::kChat, {{"messages", one["messages"]}});
    EXPECT_EQ(Json(row.ids), one["ids"]);
    for (std::size_t t = 1; t < row.ids.size(); ++t) {
      EXPECT_EQ(row.labels[t] != kIgnoredLabel, one["assistant_mask"][t] == 1) << t;
    }
    ++compared;
  }
  EXPECT_GE(compared, 10);
}

TEST(FindChatSpans, Weight0_LeavesAnAnswerOut) {
  Json messages = TwoTurns();
  messages[1]["weight"] = 0;
  messages[3]["weight"] = 1;
  for (const char* name : {"chatml.jinja", "generation.jinja"}) {
    EXPECT_THAT(TrainedText(*TokenizerWithTemplate(name), messages),
                ElementsAre("No, <b>two</b>.\n<|im_end|>"));
  }
}

TEST(FindChatSpans, TemplateForgetsTheStart_IsRefused) {
  EXPECT_THAT(Complaint(*TokenizerWithTemplate("forgetful.jinja"), TwoTurns()),
              HasSubstr("mark the assistant's text in the template with {% generation %}"));
}

TEST(FindChatSpans, NoEndOfTurnToken_IsRefused) {
  EXPECT_THAT(Complaint(*TokenizerWithTemplate("endless_turns.jinja"), TwoTurns()),
              HasSubstr("could not learn to stop"));
  EXPECT_THAT(
      Complaint(*TokenizerWithTemplate("{% for m in messages %}{{ m.role }}: {% generation %}"
                                       "{{ m.content }}{% endgeneration %}<|im_end|>{% endfor %}"),
                TwoTurns()),
      HasSubstr("move {% endgeneration %} behind it"));
}

TEST(FindChatSpans, TemplateRefusesAPrefix_SaysWhichMessage) {
  const Json messages = {Turn("assistant", "me first")};
  EXPECT_THAT(Complaint(*TokenizerWithTemplate("{% if not messages or messages[0].role != 'x' %}"
                                               "{% if messages|length == 0 %}{{ "
                                               "raise_exception('no messages') }}{% endif %}"
                                               "{% endif %}{{ messages[0].content }}<|im_end|>"),
                        messages),
              HasSubstr("the place of message 1 cannot be found"));
}

TEST(RowEncoder, Chat_BosOnlyOnce) {
  const auto tokenizer = TokenizerWithTemplate("llama3.jinja");
  const RowEncoder encoder(tokenizer.get(), tokenizer->vocab_size());
  const TokenRow row = encoder.Encode(DataType::kChat, {{"messages", TwoTurns()}});
  EXPECT_EQ(row.ids[0], tokenizer->bos_id());
  EXPECT_NE(row.ids[1], tokenizer->bos_id());
}

TEST(RowEncoder, Completion_PromptIsNotTrainedAndEosIs) {
  const auto tokenizer = TokenizerWithTemplate("");
  const RowEncoder encoder(tokenizer.get(), tokenizer->vocab_size());
  const TokenRow row =
      encoder.Encode(DataType::kCompletion, {{"prompt", "The answer:"}, {"completion", " yes"}});
  EXPECT_EQ(row.ids.front(), tokenizer->bos_id());
  EXPECT_EQ(row.ids.back(), tokenizer->eos_id());
  std::vector<std::int64_t> trained;
  for (const std::int32_t label : row.labels) {
    if (label != kIgnoredLabel) trained.push_back(label);
  }
  EXPECT_EQ(tokenizer->Decode(trained, false), " yes<|eot_id|>");
}

TEST(RowEncoder, Completion_TokenAcrossTheBorderIsTrained) {
  const auto tokenizer = TokenizerWithTemplate("");
  const RowEncoder encoder(tokenizer.get(), tokenizer->vocab_size());
  const TokenRow row =
      encoder.Encode(DataType::kCompletion, {{"prompt", "a t"}, {"completion", "he"}});
  const auto the = tokenizer->Encode(" the", false);
  ASSERT_EQ(the.size(), 1u) << "the fixture is expected to know this word";
  EXPECT_THAT(row.labels, ElementsAre(-100, -100, the[0], tokenizer->eos_id().value()));
}

TEST(RowEncoder, Text_AllIsTrainedAndEndedOnce) {
  const auto tokenizer = TokenizerWithTemplate("");
  const RowEncoder encoder(tokenizer.get(), tokenizer->vocab_size());
  for (const char* text : {"some words", "some words<|eot_id|>"}) {
    const TokenRow row = encoder.Encode(DataType::kText, {{"text", text}});
    EXPECT_EQ(row.ids.back(), tokenizer->eos_id());
    EXPECT_NE(row.ids[row.ids.size() - 2], tokenizer->eos_id());
    for (std::size_t t = 1; t < row.ids.size(); ++t) EXPECT_EQ(row.labels[t], row.ids[t]);
    EXPECT_EQ(row.labels[0], kIgnoredLabel);
  }
}

TEST(RowEncoder, TwoBos_AreRefused) {
  const auto tokenizer = TokenizerWithTemplate("");
  const RowEncoder encoder(tokenizer.get(), tokenizer->vocab_size());
  try {
    encoder.Encode(DataType::kText, {{"text", "<|begin_of_text|>x"}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("two BOS tokens"));
  }
}

TEST(RowEncoder, TokenBehindTheVocabulary_IsNamed) {
  const auto tokenizer = TokenizerWithTemplate("");
  const RowEncoder encoder(tokenizer.get(), 7);
  try {
    encoder.Encode(DataType::kText, {{"text", "x<|im_end|>"}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("vocabulary has 7 tokens"));
  }
}

TEST(RowEncoder, WhatTheTokenizerLacks_IsABadModel) {
  const auto tokenizer = TokenizerWithTemplate("");
  const RowEncoder encoder(tokenizer.get(), tokenizer->vocab_size());
  try {
    encoder.CheckTokenizer(DataType::kChat);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadModel);
    EXPECT_THAT(error.what(), HasSubstr("no chat template"));
  }
  encoder.CheckTokenizer(DataType::kText);
}

TEST(RowEncoder, NoTokenizer_TakesPretokenizedRowsOnly) {
  const RowEncoder encoder(nullptr, 7);
  encoder.CheckTokenizer(DataType::kPretokenized);
  const TokenRow row = encoder.Encode(
      DataType::kPretokenized, nlohmann::ordered_json::parse(R"({"input_ids": [1, 6, 2]})"));
  EXPECT_EQ(row.ids, (std::vector<std::int32_t>{1, 6, 2}));
  EXPECT_THROW(encoder.CheckTokenizer(DataType::kText), Error);
}

}  // namespace
}  // namespace offshoot::trainer
