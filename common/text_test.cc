// utf8.h, nearest.h, quantity.h and model_files.h: small pure functions over text.
#include <gtest/gtest.h>

#include "common/model_files.h"
#include "common/nearest.h"
#include "common/quantity.h"
#include "common/utf8.h"

namespace offshoot {
namespace {

constexpr absl::string_view kEuro = "\xE2\x82\xAC";

TEST(FirstInvalidUtf8, GoodText_IsNpos) {
  EXPECT_EQ(FirstInvalidUtf8("plain"), absl::string_view::npos);
  EXPECT_EQ(FirstInvalidUtf8(kEuro), absl::string_view::npos);
  EXPECT_EQ(FirstInvalidUtf8("\xF0\x9F\x98\x80"), absl::string_view::npos);
}

TEST(FirstInvalidUtf8, BadBytes_GiveTheirOffset) {
  EXPECT_EQ(FirstInvalidUtf8("ab\xFF"), 2u);
  EXPECT_EQ(FirstInvalidUtf8("\xC0\x80"), 0u);          // overlong
  EXPECT_EQ(FirstInvalidUtf8("\xE0\x80\x80"), 0u);      // overlong
  EXPECT_EQ(FirstInvalidUtf8("a\xED\xA0\x80"), 1u);     // surrogate
  EXPECT_EQ(FirstInvalidUtf8("a\xE2\x82"), 1u);         // cut short
  EXPECT_EQ(FirstInvalidUtf8("\xF4\x90\x80\x80"), 0u);  // beyond U+10FFFF
}

TEST(Utf8Prefix, InTheMiddleOfACharacter_EndsBeforeIt) {
  EXPECT_EQ(Utf8Prefix("a\xE2\x82\xAC", 3), "a");
  EXPECT_EQ(Utf8Prefix("a\xE2\x82\xAC", 4), "a\xE2\x82\xAC");
}

TEST(NearestWord, TyposSwapsAndCase_AreForgiven) {
  const std::vector<std::string> keys{"learning_rate", "lora_r", "lora_alpha", "seed"};
  EXPECT_EQ(NearestWord("learning-rate", keys), "learning_rate");
  EXPECT_EQ(NearestWord("leraning_rate", keys), "learning_rate");
  EXPECT_EQ(NearestWord("Lora_R", keys), "lora_r");
  EXPECT_EQ(NearestWord("loraalpha", keys), "lora_alpha");
  EXPECT_EQ(NearestWord("sed", keys), "seed");
}

TEST(NearestWord, NothingNear_IsEmpty) {
  EXPECT_EQ(NearestWord("colour", {"learning_rate", "seed"}), "");
  EXPECT_EQ(NearestWord("", {"a"}), "");
  EXPECT_EQ(NearestWord(std::string(100000, 'x'), {"seed"}), "");
}

TEST(ParseSeconds, Units_AreSeconds) {
  std::int64_t seconds = -1;
  EXPECT_TRUE(ParseSeconds("90", &seconds));
  EXPECT_EQ(seconds, 90);
  EXPECT_TRUE(ParseSeconds("30m", &seconds));
  EXPECT_EQ(seconds, 1800);
  EXPECT_TRUE(ParseSeconds("2h", &seconds));
  EXPECT_EQ(seconds, 7200);
  EXPECT_TRUE(ParseSeconds("1d", &seconds));
  EXPECT_EQ(seconds, 86400);
  for (const char* text :
       {"", "-1", "1.5h", "h", "2 weeks", "99999999999999999999", "999999999999999999d"}) {
    EXPECT_FALSE(ParseSeconds(text, &seconds)) << text;
  }
}

TEST(ParseBytes, BinaryAndDecimalUnits_Differ) {
  std::int64_t bytes = -1;
  EXPECT_TRUE(ParseBytes("8GiB", &bytes));
  EXPECT_EQ(bytes, 8LL << 30);
  EXPECT_TRUE(ParseBytes("8 GB", &bytes));
  EXPECT_EQ(bytes, 8'000'000'000);
  EXPECT_TRUE(ParseBytes("0", &bytes));
  EXPECT_EQ(bytes, 0);
  EXPECT_FALSE(ParseBytes("8G", &bytes));
  EXPECT_FALSE(ParseBytes("99999999TiB", &bytes));
}

TEST(BelongsToModel, PicklesAndHiddenFiles_DoNot) {
  for (const char* path : {"config.json", "a/model-00001-of-00002.safetensors", "m.gguf",
                           "chat_template.jinja", "tokenizer.model", "hy.tiktoken", "LICENSE", "README.md"}) {
    EXPECT_TRUE(BelongsToModel(path)) << path;
  }
  for (const char* path :
       {"pytorch_model.bin", ".git/config.json", "a/.cache/x.json", "x.pt", "run.py"}) {
    EXPECT_FALSE(BelongsToModel(path)) << path;
  }
}

TEST(Format, QuantitiesForPeople_AreShort) {
  EXPECT_EQ(FormatSeconds(3), "3 s");
  EXPECT_EQ(FormatSeconds(125), "2 min 5 s");
  EXPECT_EQ(FormatSeconds(3720), "1 h 2 min");
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(3 << 19), "1.5 MiB");
}

}  // namespace
}  // namespace offshoot
