#include "trainer/data/jsonl_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/data/data_testing.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

std::vector<std::pair<std::int64_t, std::string>> ReadAll(const std::string& path) {
  JsonlReader reader(path);
  std::vector<std::pair<std::int64_t, std::string>> lines;
  JsonlLine line;
  while (reader.Next(&line)) lines.emplace_back(line.number, line.text);
  return lines;
}

std::string ComplaintAbout(const std::string& line) {
  try {
    ParseJsonLine(line);
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadData);
    return error.what();
  }
  return "";
}

TEST(JsonlReader, BlankLinesAndByteOrderMark_NumbersStayThoseOfTheFile) {
  const TemporaryDirectory directory;
  const std::string path = directory.Write("a.jsonl", "\xEF\xBB\xBF{}\r\n\n  \t\n[1]\nlast");
  EXPECT_THAT(ReadAll(path), ElementsAre(Pair(1, "{}\r"), Pair(4, "[1]"), Pair(5, "last")));
}

TEST(JsonlReader, EmptyFile_HasNoLine) {
  const TemporaryDirectory directory;
  EXPECT_TRUE(ReadAll(directory.Write("a.jsonl", "")).empty());
  EXPECT_TRUE(ReadAll(directory.Write("b.jsonl", "\n\n \n")).empty());
}

TEST(JsonlReader, NoFile_IsNamed) {
  try {
    JsonlReader reader("/nowhere/at-all.jsonl");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("/nowhere/at-all.jsonl does not exist"));
  }
  const TemporaryDirectory directory;
  EXPECT_THROW(JsonlReader reader(directory.path().string()), Error);
}

TEST(ParseJsonLine, WhatIsWrong_IsSaid) {
  EXPECT_THAT(ComplaintAbout("{\"a\": "), HasSubstr("not valid JSON"));
  EXPECT_THAT(ComplaintAbout("{\"a\": 1} x"), HasSubstr("not valid JSON"));
  EXPECT_THAT(ComplaintAbout("[1, 2]"), HasSubstr("a JSON array"));
  EXPECT_THAT(ComplaintAbout("{\"a\": \"\xFF\"}"), HasSubstr("not valid UTF-8 at byte 8"));
  EXPECT_THAT(ComplaintAbout(R"({"a": "\ud800"})"), HasSubstr("surrogate"));
  EXPECT_THAT(ComplaintAbout(R"({"a": "\udc00x"})"), HasSubstr("surrogate"));
  EXPECT_THAT(ComplaintAbout(std::string(100, '[')), HasSubstr("nested more than 64 deep"));
  EXPECT_EQ(
      ComplaintAbout(R"({"a": "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["})"), "");
}

TEST(ParseJsonLine, Surrogates_PairUp) {
  EXPECT_EQ(ParseJsonLine(R"({"a": "\ud83d\ude00"})")["a"], "\U0001F600");
}

TEST(FindInvalidUtf8, EdgesOfTheRanges) {
  const auto npos = std::string_view::npos;
  EXPECT_EQ(FindInvalidUtf8("a\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80"), npos);
  EXPECT_EQ(FindInvalidUtf8("\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF"), npos);
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2u);
  EXPECT_EQ(FindInvalidUtf8("\xC1\xBF"), 0u);          // overlong
  EXPECT_EQ(FindInvalidUtf8("\xE0\x9F\xBF"), 0u);      // overlong
  EXPECT_EQ(FindInvalidUtf8("\xED\xA0\x80"), 0u);      // surrogate
  EXPECT_EQ(FindInvalidUtf8("\xF0\x8F\xBF\xBF"), 0u);  // overlong
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("a\xE2\x82"), 1u);         // cut off
  EXPECT_EQ(FindInvalidUtf8(std::string_view("\0\0", 2)), npos);
}

}  // namespace
}  // namespace offshoot::trainer
