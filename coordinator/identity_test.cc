#include "coordinator/identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/digest.h"

namespace offshoot {
namespace {

using ::testing::HasSubstr;

std::string Users() {
  return absl::StrCat("alice: {team: red, role: submit, token: \"", DigestOf("alice's\""), "\"}\n",
                      "bob: {team: blue, role: operate, token: \"", DigestOf("bob's"), "\"}\n",
                      "node1: {role: worker, token: \"", DigestOf("node's"), "\"}\n");
}

absl::StatusCode CodeOf(const Identities& identities, const std::string& authorization,
                        bool certificate, Right right) {
  return identities.Require(authorization, certificate, right).status().code();
}

TEST(Identities_Roles, MayDoWhatTheyAreFor_AndNothingElse) {
  const auto identities = Identities::Parse(Users(), "users.yaml");
  ASSERT_TRUE(identities.ok()) << identities.status();
  const auto code = [&](const std::string& token, Right right) {
    return CodeOf(*identities, absl::StrCat("Bearer ", token), false, right);
  };
  EXPECT_EQ(code("alice's\"", Right::kUse), absl::StatusCode::kOk);
  EXPECT_EQ(code("alice's\"", Right::kOperate), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(code("alice's\"", Right::kServe), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(code("bob's", Right::kOperate), absl::StatusCode::kOk);
  EXPECT_EQ(code("node's", Right::kServe), absl::StatusCode::kOk);
  EXPECT_EQ(code("node's", Right::kUse), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(code("nobody's", Right::kUse), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf(*identities, "", false, Right::kTransfer), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf(*identities, "Basic YTpi", false, Right::kUse),
            absl::StatusCode::kUnauthenticated);
}

TEST(Identities_Certificate, IsAWorkers_AndNoUsers) {
  const auto identities = Identities::Parse(Users(), "users.yaml");
  ASSERT_TRUE(identities.ok());
  EXPECT_EQ(CodeOf(*identities, "", true, Right::kServe), absl::StatusCode::kOk);
  EXPECT_EQ(CodeOf(*identities, "", true, Right::kUse), absl::StatusCode::kPermissionDenied);
}

TEST(Identities_Team, OfAnother_IsRefusedToSubmitOnly) {
  const auto identities = Identities::Parse(Users(), "users.yaml");
  ASSERT_TRUE(identities.ok());
  const auto alice = identities->Require("Bearer alice's\"", false, Right::kUse);
  ASSERT_TRUE(alice.ok());
  EXPECT_TRUE(CheckTeam(*alice, "red", "the job").ok());
  EXPECT_TRUE(absl::IsPermissionDenied(CheckTeam(*alice, "blue", "the job")));
  const auto bob = identities->Require("Bearer bob's", false, Right::kUse);
  EXPECT_TRUE(CheckTeam(*bob, "red", "the job").ok());
}

TEST(Identities_None, EverybodyMayDoEverything) {
  const Identities identities;
  EXPECT_EQ(CodeOf(identities, "", false, Right::kOperate), absl::StatusCode::kOk);
  EXPECT_FALSE(identities.Require("", false, Right::kUse)->asked);
}

TEST(Identities_File, Faults_AreNamedWithTheirLine) {
  const std::string digest = DigestOf("x");
  const std::pair<std::string, const char*> wrong[] = {
      {"a: {team: t, role: king, token: \"" + digest + "\"}\n", "role is one of"},
      {"a: {team: t, role: submit, token: secret}\n", "sha256:"},
      {"a: {role: submit, token: \"" + digest + "\"}\n", "needs a team"},
      {"a: {team: t, token: \"" + digest + "\"}\n", "needs a role"},
      {"a: {team: t, role: submit, pass: x}\n", "is not a key of a user"},
      {"- a\n", "write"}};
  for (const auto& [yaml, what] : wrong) {
    const auto identities = Identities::Parse(yaml, "users.yaml");
    EXPECT_THAT(std::string(identities.status().message()), HasSubstr(what)) << yaml;
    EXPECT_THAT(std::string(identities.status().message()), HasSubstr("users.yaml, line 1"));
  }
}

}  // namespace
}  // namespace offshoot
