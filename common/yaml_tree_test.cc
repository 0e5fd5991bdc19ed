#include "common/yaml_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace offshoot {
namespace {

using testing::HasSubstr;

std::string FaultOf(absl::string_view text) {
  const YamlResult result = ParseYamlTree(text);
  return result.faults.empty() ? "" : result.faults[0].message;
}

TEST(YamlTree, MapOfScalars_KeepsLinesOrderAndQuotes) {
  const YamlResult result = ParseYamlTree("b: 1\n\na: \"1\"\nlist:\n  - x\n");
  ASSERT_TRUE(result.faults.empty());
  ASSERT_EQ(result.root.entries.size(), 3u);
  EXPECT_EQ(result.root.entries[0].key.text, "b");
  EXPECT_FALSE(result.root.entries[0].value.quoted);
  EXPECT_EQ(result.root.entries[1].key.line, 3);
  EXPECT_TRUE(result.root.entries[1].value.quoted);
  EXPECT_EQ(result.root.entries[2].value.items[0].text, "x");
  EXPECT_EQ(result.root.entries[2].value.items[0].line, 5);
}

TEST(YamlTree, RepeatedKeys_AreBothThere) {
  EXPECT_EQ(ParseYamlTree("a: 1\na: 2\n").root.entries.size(), 2u);
}

TEST(YamlTree, EmptyText_IsNull) {
  EXPECT_EQ(ParseYamlTree("").root.kind, YamlKind::kNull);
  EXPECT_EQ(ParseYamlTree("# only a comment\n").root.kind, YamlKind::kNull);
}

TEST(YamlTree, WhatCouldExplode_IsRefused) {
  EXPECT_THAT(FaultOf("a: &x [1]\nb: *x\n"), HasSubstr("anchor"));
  EXPECT_THAT(FaultOf("a: *x\n"), testing::Not(""));
  EXPECT_THAT(FaultOf("a: !!python/object x\n"), HasSubstr("tag"));
  EXPECT_THAT(FaultOf("a: 1\n---\nb: 2\n"), HasSubstr("second document"));
  EXPECT_THAT(FaultOf(std::string(300, '[')), HasSubstr("nested"));
  EXPECT_THAT(FaultOf(std::string(300 << 10, 'a')), HasSubstr("bytes"));
  std::string many = "a: [";
  for (int i = 0; i < 30000; ++i) many += "1,";
  EXPECT_THAT(FaultOf(many + "1]"), HasSubstr("more than 20000 values"));
}

TEST(YamlTree, BrokenSyntax_NamesTheLine) {
  const YamlResult result = ParseYamlTree("a: 1\nb: [1, 2\nc: 3\n");
  ASSERT_EQ(result.faults.size(), 1u);
  EXPECT_GE(result.faults[0].line, 2);
}

TEST(YamlTree, BytesThatAreNotText_AreRefused) {
  const YamlResult result = ParseYamlTree("a: 1\nb: \xff\n");
  ASSERT_EQ(result.faults.size(), 1u);
  EXPECT_EQ(result.faults[0].line, 2);
  EXPECT_THAT(result.faults[0].message, HasSubstr("UTF-8"));
  EXPECT_THAT(FaultOf(absl::string_view("a: \0", 4)), HasSubstr("NUL"));
}

TEST(QuoteYaml, AnyText_ReadsBackTheSame) {
  for (const std::string text : {"", "a: b", "\"\\\n\t#", "~", "true", "caf\xC3\xA9"}) {
    const YamlResult result = ParseYamlTree("k: " + QuoteYaml(text) + "\n");
    ASSERT_TRUE(result.faults.empty()) << text;
    EXPECT_EQ(result.root.entries[0].value.text, text);
  }
}

}  // namespace
}  // namespace offshoot
