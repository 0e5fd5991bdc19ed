#include "coordinator/worker_authority.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/files.h"
#include "common/temporary_directory.h"

namespace offshoot {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class WorkerAuthorityTest : public ::testing::Test {
 protected:
  WorkerAuthorityTest() {
    ca_ = *MakeAuthority("CA", clock_.Now(), absl::Hours(1000));
    Open();
  }
  void Open() {
    auto opened =
        WorkerAuthority::Open(directory_.File("members.json"), ca_, absl::Hours(2), clock_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    authority_ = *std::move(opened);
  }
  std::string Token(absl::Duration valid = absl::ZeroDuration()) {
    auto invitation = authority_->Invite(valid);
    EXPECT_TRUE(invitation.ok()) << invitation.status();
    return invitation.ok() ? invitation->token : "";
  }
  static std::string Request(const std::string& key) { return *MakeCertificateRequest(key, "w"); }

  TemporaryDirectory directory_;
  FakeClock clock_{absl::FromUnixSeconds(1'800'000'000)};
  KeyAndCertificate ca_;
  std::unique_ptr<WorkerAuthority> authority_;
  const std::string key_ = *MakePrivateKey();
  const std::string other_key_ = *MakePrivateKey();
};

TEST_F(WorkerAuthorityTest, Token_LetsOneWorkerIn_Once_AlsoAfterARestart) {
  const std::string token = Token();
  EXPECT_THAT(*ReadFile(directory_.File("members.json")), Not(HasSubstr(token)));
  Open();
  const auto issued = authority_->Join(token, "wrk-a", Request(key_));
  ASSERT_TRUE(issued.ok()) << issued.status();
  EXPECT_EQ(ReadCertificate(issued->certificate_pem)->common_name, "wrk-a");
  EXPECT_TRUE(authority_->Check("wrk-a").ok());
  Open();
  EXPECT_TRUE(authority_->Check("wrk-a").ok());
  EXPECT_TRUE(authority_->Join(token, "wrk-a", Request(key_)).ok()) << "its answer was lost";
  for (const auto& [worker, key] :
       {std::pair("wrk-b", key_), std::pair("wrk-b", other_key_), std::pair("wrk-a", other_key_)}) {
    const auto again = authority_->Join(token, worker, Request(key));
    EXPECT_TRUE(absl::IsUnauthenticated(again.status())) << again.status();
    EXPECT_THAT(std::string(again.status().message()), HasSubstr("used by another worker"));
  }
}

TEST_F(WorkerAuthorityTest, Token_ExpiredOrInvented_LetsNobodyIn) {
  const std::string token = Token(absl::Minutes(5));
  clock_.Advance(absl::Minutes(5));
  EXPECT_THAT(std::string(authority_->Join(token, "wrk-a", Request(key_)).status().message()),
              HasSubstr("has expired"));
  for (const std::string& invented :
       {std::string(), std::string("join-0"), token + "0", std::string(1 << 20, 'j')}) {
    EXPECT_TRUE(
        absl::IsUnauthenticated(authority_->Join(invented, "wrk-a", Request(key_)).status()));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(authority_->Invite(absl::Hours(24 * 31)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(authority_->Invite(-absl::Hours(1)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(authority_->Join(Token(), "alice", Request(key_)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(authority_->Join(Token(), "wrk-a", "nonsense").status()));
}

TEST_F(WorkerAuthorityTest, AnotherWorkersId_CannotBeTakenOver) {
  ASSERT_TRUE(authority_->Join(Token(), "wrk-a", Request(key_)).ok());
  EXPECT_TRUE(
      absl::IsAlreadyExists(authority_->Join(Token(), "wrk-a", Request(other_key_)).status()));
}

TEST_F(WorkerAuthorityTest, Certificate_EndsUnlessRenewed) {
  ASSERT_TRUE(authority_->Join(Token(), "wrk-a", Request(key_)).ok());
  clock_.Advance(absl::Minutes(90));
  ASSERT_TRUE(authority_->Renew("wrk-a", Request(other_key_)).ok());
  clock_.Advance(absl::Minutes(90));
  EXPECT_TRUE(authority_->Check("wrk-a").ok());
  clock_.Advance(absl::Minutes(31));
  EXPECT_TRUE(absl::IsUnauthenticated(authority_->Check("wrk-a")));
  ASSERT_TRUE(authority_->Join(Token(), "wrk-a", Request(other_key_)).ok()) << "the same key";
  EXPECT_TRUE(authority_->Check("wrk-a").ok());
  EXPECT_TRUE(absl::IsPermissionDenied(authority_->Renew("wrk-b", Request(key_)).status()));
}

TEST_F(WorkerAuthorityTest, Member_WhoseCertificateEnded_ComesBackByItsKeyForAMonth) {
  ASSERT_TRUE(authority_->Join(Token(), "wrk-a", Request(key_)).ok());
  clock_.Advance(absl::Hours(2 + 24 * 29));
  EXPECT_TRUE(absl::IsUnauthenticated(authority_->Check("wrk-a")));
  EXPECT_TRUE(absl::IsUnauthenticated(authority_->Join("", "wrk-a", Request(other_key_)).status()));
  EXPECT_TRUE(absl::IsUnauthenticated(authority_->Join("", "wrk-b", Request(key_)).status()));
  ASSERT_TRUE(authority_->Join("", "wrk-a", Request(key_)).ok());
  EXPECT_TRUE(authority_->Check("wrk-a").ok());
  clock_.Advance(absl::Hours(2 + 24 * 30));
  EXPECT_TRUE(absl::IsUnauthenticated(authority_->Join("", "wrk-a", Request(key_)).status()));
  ASSERT_TRUE(authority_->Join(Token(), "wrk-a", Request(key_)).ok());
  ASSERT_TRUE(authority_->Expel("wrk-a").ok());
  EXPECT_TRUE(absl::IsPermissionDenied(authority_->Join("", "wrk-a", Request(key_)).status()));
}

TEST_F(WorkerAuthorityTest, ExpelledWorker_StaysOut) {
  ASSERT_TRUE(authority_->Join(Token(), "wrk-a", Request(key_)).ok());
  EXPECT_TRUE(absl::IsNotFound(authority_->Expel("wrk-b")));
  ASSERT_TRUE(authority_->Expel("wrk-a").ok());
  Open();
  EXPECT_TRUE(absl::IsPermissionDenied(authority_->Check("wrk-a")));
  EXPECT_TRUE(absl::IsPermissionDenied(authority_->Renew("wrk-a", Request(key_)).status()));
  EXPECT_TRUE(absl::IsPermissionDenied(authority_->Join(Token(), "wrk-a", Request(key_)).status()));
}

TEST_F(WorkerAuthorityTest, File_ThatSomebodyChanged_IsNamed) {
  ASSERT_TRUE(WriteFileAtomically(directory_.File("members.json"), "{\"tokens\": 7}").ok());
  const auto opened =
      WorkerAuthority::Open(directory_.File("members.json"), ca_, absl::Hours(2), clock_);
  EXPECT_TRUE(absl::IsDataLoss(opened.status()));
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("members.json"));
}

}  // namespace
}  // namespace offshoot
