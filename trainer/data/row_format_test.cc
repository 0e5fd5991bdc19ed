#include "trainer/data/row_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "trainer/data/token_batch.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::ordered_json;
using testing::ElementsAre;
using testing::HasSubstr;

std::string ComplaintOf(const std::function<void()>& parse) {
  try {
    parse();
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadData);
    return error.what();
  }
  return "no complaint";
}

std::string ChatComplaint(const char* line) {
  return ComplaintOf([line] { ParseChat(Json::parse(line)); });
}

TEST(ParseChat, ThreeShapes_BecomeTheSameMessages) {
  const Json expected = Json::parse(
      R"([{"role": "user", "content": "q\n\nmore"}, {"role": "assistant", "content": "a"}])");
  EXPECT_EQ(ParseChat({{"messages", expected}}), expected);
  EXPECT_EQ(ParseChat(Json::parse(R"({"conversations": [{"from": "human", "value": "q\n\nmore"},
                                                        {"from": "gpt", "value": "a"}]})")),
            expected);
  EXPECT_EQ(ParseChat(Json::parse(R"({"instruction": "q", "input": "more", "output": "a"})")),
            expected);
  EXPECT_EQ(
      ParseChat(Json::parse(R"({"instruction": "q", "input": "", "output": "a"})"))[0]["content"],
      "q");
}

TEST(ParseChat, OtherKeysOfAMessage_StayInTheirOrder) {
  const Json line = Json::parse(
      R"({"messages": [{"role": "assistant", "z": 1, "content": null, "tool_calls": [{"b": 1, "a": 2}]}]})");
  EXPECT_EQ(ParseChat(line).dump(),
            R"([{"role":"assistant","z":1,"content":"","tool_calls":[{"b":1,"a":2}]}])");
}

TEST(ParseChat, TextParts_AreJoined) {
  const Json line = Json::parse(
      R"({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]})");
  EXPECT_EQ(ParseChat(line)[0]["content"], "ab");
}

TEST(ParseChat, WhatIsWrong_IsSaid) {
  EXPECT_THAT(ChatComplaint(R"({"text": "x"})"), HasSubstr(R"(no "messages" (its keys: "text"))"));
  EXPECT_THAT(ChatComplaint(R"({"messages": {}})"), HasSubstr("must be an array"));
  EXPECT_THAT(ChatComplaint(R"({"messages": []})"), HasSubstr("no assistant message"));
  EXPECT_THAT(ChatComplaint(R"({"messages": ["x"]})"), HasSubstr("message 1 is a string"));
  EXPECT_THAT(ChatComplaint(R"({"messages": [{"content": "x"}]})"),
              HasSubstr(R"(message 1 has no "role")"));
  EXPECT_THAT(ChatComplaint(R"({"messages": [{"role": "assistent", "content": "x"}]})"),
              HasSubstr(R"(the role "assistent")"));
  EXPECT_THAT(ChatComplaint(R"({"messages": [{"role": "user", "content": 5}]})"),
              HasSubstr("is a number; it must be a string"));
  EXPECT_THAT(ChatComplaint(R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})"),
              HasSubstr("not text"));
  EXPECT_THAT(ChatComplaint(R"({"messages": [{"role": "user"}]})"), HasSubstr(R"(no "content")"));
  EXPECT_THAT(ChatComplaint(R"({"conversations": [{"from": "robot", "value": "x"}]})"),
              HasSubstr(R"("robot")"));
  EXPECT_THAT(ChatComplaint(R"({"instruction": "x"})"), HasSubstr(R"(no "output")"));
}

TEST(ParseCompletion, KeysAndTypes_AreChecked) {
  const PromptCompletion example = ParseCompletion({{"prompt", "p"}, {"completion", "c"}});
  EXPECT_EQ(example.prompt, "p");
  EXPECT_EQ(example.completion, "c");
  EXPECT_THAT(ComplaintOf([] {
                ParseCompletion({{"prompt", "p"}});
              }),
              HasSubstr(R"(no "completion")"));
  EXPECT_THAT(ComplaintOf([] {
                ParseCompletion({{"prompt", "p"}, {"completion", ""}});
              }),
              HasSubstr("empty"));
}

TEST(ParseText, KeysAndTypes_AreChecked) {
  EXPECT_EQ(ParseText({{"text", "t"}}), "t");
  EXPECT_THAT(ComplaintOf([] { ParseText({{"text", 1}}); }), HasSubstr("must be a string"));
  EXPECT_THAT(ComplaintOf([] { ParseText({{"text", ""}}); }), HasSubstr("empty"));
}

TEST(ParsePretokenized, LabelsMissing_AllButTheFirstAreTrained) {
  const TokenRow row = ParsePretokenized(Json::parse(R"({"input_ids": [5, 6, 7]})"), 10);
  EXPECT_THAT(row.ids, ElementsAre(5, 6, 7));
  EXPECT_THAT(row.labels, ElementsAre(-100, 6, 7));
}

TEST(ParsePretokenized, Labels_MayDifferFromTheIds) {
  const TokenRow row =
      ParsePretokenized(Json::parse(R"({"input_ids": [5, 6, 7], "labels": [5, -100, 9]})"), 10);
  EXPECT_THAT(row.labels, ElementsAre(-100, -100, 9));
}

TEST(ParsePretokenized, WhatIsWrong_IsSaid) {
  const auto complaint = [](const char* line) {
    return ComplaintOf([line] { ParsePretokenized(Json::parse(line), 10); });
  };
  EXPECT_THAT(complaint(R"({})"), HasSubstr(R"(no "input_ids" (its keys: none))"));
  EXPECT_THAT(complaint(R"({"input_ids": []})"), HasSubstr("empty"));
  EXPECT_THAT(complaint(R"({"input_ids": [1.5]})"), HasSubstr("no integer"));
  EXPECT_THAT(complaint(R"({"input_ids": [10]})"), HasSubstr("the token 10"));
  EXPECT_THAT(complaint(R"({"input_ids": [-100]})"), HasSubstr("the token -100"));
  EXPECT_THAT(complaint(R"({"input_ids": [18446744073709551615]})"), HasSubstr("the token"));
  EXPECT_THAT(complaint(R"({"input_ids": [1], "labels": [1, 2]})"), HasSubstr("2 labels"));
  EXPECT_THAT(complaint(R"({"input_ids": [1, 2], "attention_mask": [1, 0]})"),
              HasSubstr("padding"));
}

}  // namespace
}  // namespace offshoot::trainer
