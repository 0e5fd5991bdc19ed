// Certificates and tokens made by the command line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <sstream>

#include "absl/strings/strip.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "common/certificates.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/temporary_directory.h"

namespace offshoot::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class CaTest : public ::testing::Test {
 protected:
  int Run(const std::vector<std::string>& words) {
    out_.str("");
    err_.str("");
    Context context({out_, err_});
    return RunCli(words, context);
  }
  std::string Read(const std::string& name) const {
    const auto text = ReadFile(directory_.File(name));
    EXPECT_TRUE(text.ok()) << text.status();
    return text.ok() ? *text : "";
  }

  TemporaryDirectory directory_;
  std::ostringstream out_;
  std::ostringstream err_;
};

TEST_F(CaTest, Init_MakesKeysThatNobodyElseReads_AndOverwritesNothing) {
  ASSERT_EQ(Run({"ca", "init", directory_.File("pki"), "--host", "hub.example"}), kOk)
      << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("tls_client_ca_key: "));
  for (const char* name : {"ca", "server"}) {
    const std::string key = directory_.File(std::string("pki/") + name + ".key");
    struct stat info;
    ASSERT_EQ(stat(key.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600U) << key;
    EXPECT_TRUE(CheckKeyPair({Read(std::string("pki/") + name + ".key"),
                              Read(std::string("pki/") + name + ".pem")})
                    .ok());
  }
  EXPECT_EQ(ReadCertificate(Read("pki/server.pem"))->common_name, "hub.example");
  const std::string before = Read("pki/ca.key");
  EXPECT_EQ(Run({"ca", "init", directory_.File("pki")}), kWrongUse);
  EXPECT_THAT(err_.str(), HasSubstr("nothing is overwritten"));
  EXPECT_EQ(Read("pki/ca.key"), before);

  EXPECT_EQ(Run({"ca", "server", directory_.File("pki"), "--host", "x"}), kWrongUse);
  remove(directory_.File("pki/server.key").c_str());
  remove(directory_.File("pki/server.pem").c_str());
  ASSERT_EQ(Run({"ca", "server", directory_.File("pki"), "--host", "new.example"}), kOk);
  EXPECT_EQ(ReadCertificate(Read("pki/server.pem"))->common_name, "new.example");
  EXPECT_EQ(Run({"ca", "init", directory_.File("other"), "--host", "a,DNS:b"}), kWrongUse);
  EXPECT_THAT(err_.str(), HasSubstr("neither a host name nor an IP address"));
}

TEST_F(CaTest, User_GetsATokenThatOnlyItsDigestIsKeptOf) {
  ASSERT_EQ(Run({"ca", "user", directory_.path(), "olga", "--team", "staff", "--role", "admin"}),
            kOk)
      << err_.str();
  std::string token = out_.str();
  ASSERT_FALSE(token.empty());
  token.pop_back();
  EXPECT_THAT(Read("users.yaml"), HasSubstr(DigestOf(token)));
  EXPECT_THAT(Read("users.yaml"), Not(HasSubstr(token)));
  EXPECT_EQ(Run({"ca", "user", directory_.path(), "olga", "--team", "staff"}), kWrongUse);
  EXPECT_THAT(err_.str(), HasSubstr("already"));
  EXPECT_EQ(Run({"ca", "user", directory_.path(), "bob"}), kWrongUse);
  EXPECT_THAT(err_.str(), HasSubstr("--team"));
  EXPECT_EQ(Run({"ca", "user", directory_.path(), "b: {", "--team", "t"}), kWrongUse);
  ASSERT_EQ(Run({"ca", "user", directory_.path(), "bob", "--team", "red"}), kOk);
  EXPECT_THAT(Read("users.yaml"), HasSubstr("bob: {team: \"red\", role: submit"));
}

}  // namespace
}  // namespace offshoot::cli
