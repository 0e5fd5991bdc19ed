// What needs no coordinator: wrong use, help, completion.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "cli/cli_testing.h"
#include "cli/exit_code.h"
#include "common/files.h"
#include "common/temporary_directory.h"

namespace offshoot::cli {
namespace {

using testing::HasSubstr;

TEST(Cli, WrongVerb_IsAnsweredWithTheNearest) {
  const Outcome outcome = RunWith({"sumbit", "x"});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.err, HasSubstr("did you mean submit?"));
}

TEST(Cli, WrongFlagOrNothing_ExitsTwo) {
  EXPECT_EQ(RunWith({"list", "--colour"}).exit_code, kWrongUse);
  EXPECT_EQ(RunWith({"list", "-o", "xml"}).exit_code, kWrongUse);
  EXPECT_EQ(RunWith({"status"}).exit_code, kWrongUse);
  EXPECT_EQ(RunWith({}).exit_code, kWrongUse);
}

TEST(Cli, Help_IsThereForEveryCommand) {
  for (const char* verb :
       {"run", "validate", "submit", "list", "status", "watch", "logs", "metrics", "cancel",
        "pause", "resume", "workers", "models", "derivatives", "pull", "completion"}) {
    const Outcome outcome = RunWith({verb, "--help"});
    EXPECT_EQ(outcome.exit_code, kOk) << verb;
    EXPECT_THAT(outcome.out, HasSubstr("Usage")) << verb;
  }
  EXPECT_THAT(RunWith({"--help"}).out, HasSubstr("130 interrupted"));
  EXPECT_THAT(RunWith({"--version"}).out, HasSubstr("offshoot "));
}

TEST(Cli, Completion_NamesVerbsAndOptions) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Outcome outcome = RunWith({"completion", shell});
    EXPECT_EQ(outcome.exit_code, kOk);
    EXPECT_THAT(outcome.out, HasSubstr("derivatives")) << shell;
    EXPECT_THAT(outcome.out, HasSubstr("undrain")) << shell;
    EXPECT_THAT(outcome.out, HasSubstr("request-id")) << shell;
  }
  EXPECT_EQ(RunWith({"completion", "tcsh"}).exit_code, kWrongUse);
}

TEST(Cli, BashCompletion_CompletesVerbsBelowVerbs) {
  TemporaryDirectory directory;
  const std::string script = directory.File("completion");
  ASSERT_TRUE(WriteFileAtomically(script, RunWith({"completion", "bash"}).out).ok());
  const auto complete = [&](const std::string& words, int index) {
    const std::string result = directory.File("result");
    const std::string command =
        absl::StrCat("bash -c 'source ", script, "; COMP_WORDS=(", words, "); COMP_CWORD=", index,
                     "; _offshoot; echo \"${COMPREPLY[@]}\"' > ", result);
    EXPECT_EQ(std::system(command.c_str()), 0);
    return ReadFile(result).value();
  };
  EXPECT_EQ(complete("offshoot sub", 1), "submit\n");
  EXPECT_EQ(complete("offshoot workers un", 2), "undrain\n");
  EXPECT_THAT(complete("offshoot submit --re", 2), HasSubstr("--request-id"));
}

}  // namespace
}  // namespace offshoot::cli
