#include "trainer/commands/arguments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace offshoot::trainer {
namespace {

using ::testing::HasSubstr;

Arguments Example() {
  return Arguments("score", "scores",
                   {{"model", "DIR", "the model", true},
                    {"top-p", "P", "share", false, "0.9"},
                    {"count", "N", "how many"},
                    {"quiet", "", "says less"}});
}

std::string Refusal(const std::vector<std::string>& words) {
  Arguments arguments = Example();
  try {
    arguments.Parse(words);
  } catch (const UsageError& error) {
    return error.what();
  }
  ADD_FAILURE() << "accepted";
  return "";
}

TEST(Arguments, BothForms_AreRead) {
  Arguments arguments = Example();
  ASSERT_TRUE(arguments.Parse({"--model", "a b", "--count=3", "--quiet"}));
  EXPECT_EQ(arguments.Text("model"), "a b");
  EXPECT_EQ(arguments.Integer("count", 0, 10), 3);
  EXPECT_TRUE(arguments.Switch("quiet"));
  EXPECT_DOUBLE_EQ(arguments.Number("top-p", 0, 1), 0.9);
}

TEST(Arguments, WrongUse_IsOneClearSentence) {
  EXPECT_THAT(Refusal({"--modle", "x"}), HasSubstr("Did you mean --model?"));
  EXPECT_THAT(Refusal({}), HasSubstr("--model DIR is missing"));
  EXPECT_THAT(Refusal({"--model"}), HasSubstr("--model needs a value"));
  EXPECT_THAT(Refusal({"--model", "a", "--model", "b"}), HasSubstr("twice"));
  EXPECT_THAT(Refusal({"--model", "a", "--quiet=yes"}), HasSubstr("takes no value"));
  EXPECT_THAT(Refusal({"model"}), HasSubstr("'model' is no argument"));
}

TEST(Arguments, BadNumbers_NameTheRange) {
  Arguments arguments = Example();
  ASSERT_TRUE(arguments.Parse({"--model", "a", "--count", "3x", "--top-p", "nan"}));
  EXPECT_THROW(arguments.Integer("count", 0, 10), UsageError);
  EXPECT_THROW(arguments.Number("top-p", 0, 1), UsageError);
}

TEST(Arguments, Help_ListsEverything) {
  const std::string help = Example().Help();
  for (const char* part : {"--model DIR", "(required)", "(default 0.9)", "--quiet"}) {
    EXPECT_THAT(help, HasSubstr(part));
  }
}

}  // namespace
}  // namespace offshoot::trainer
