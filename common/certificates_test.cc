#include "common/certificates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace offshoot {
namespace {

using ::testing::HasSubstr;

const absl::Time kThen = absl::FromUnixSeconds(1'800'000'000);

TEST(Certificates_Worker, IsInTheNameGiven_WhateverTheRequestSays) {
  const auto authority = MakeAuthority("our CA", kThen, absl::Hours(24));
  ASSERT_TRUE(authority.ok()) << authority.status();
  EXPECT_TRUE(CheckKeyPair(*authority).ok());
  const auto key = MakePrivateKey();
  ASSERT_TRUE(key.ok()) << key.status();
  const auto request = MakeCertificateRequest(*key, "admin");
  ASSERT_TRUE(request.ok()) << request.status();
  const auto certificate =
      SignWorkerCertificate(*authority, *request, "wrk-1", kThen, absl::Hours(2));
  ASSERT_TRUE(certificate.ok()) << certificate.status();
  const auto facts = ReadCertificate(*certificate);
  ASSERT_TRUE(facts.ok());
  EXPECT_EQ(facts->common_name, "wrk-1");
  EXPECT_EQ(facts->valid_from, kThen - kCertificateBackdate);
  EXPECT_EQ(facts->valid_until, kThen + absl::Hours(2));
  EXPECT_TRUE(CheckKeyPair({*key, *certificate}).ok());
  EXPECT_THAT(std::string(CheckKeyPair({authority->key_pem, *certificate}).message()),
              HasSubstr("not that of the certificate"));
}

TEST(Certificates_Server, OddHosts_AreRefused) {
  const auto authority = MakeAuthority("our CA", kThen, absl::Hours(24));
  ASSERT_TRUE(authority.ok());
  EXPECT_TRUE(MakeServerCertificate(*authority, {"node-1.example", "10.0.0.1", "::1"}, kThen,
                                    absl::Hours(1))
                  .ok());
  for (const char* host : {"", "a b", "x,DNS:bank.example", "a\nb"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        MakeServerCertificate(*authority, {host}, kThen, absl::Hours(1)).status()))
        << host;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(
      MakeServerCertificate(*authority, {}, kThen, absl::Hours(1)).status()));
}

TEST(Certificates_Request, Nonsense_IsRefused) {
  const auto key = MakePrivateKey();
  const auto request = MakeCertificateRequest(*key, "w");
  ASSERT_TRUE(KeyDigestOfRequest(*request).ok());
  EXPECT_EQ(*KeyDigestOfRequest(*request), *KeyDigestOfRequest(*MakeCertificateRequest(*key, "x")));
  // One changed byte of the signature's end.
  std::string forged = *request;
  const std::size_t place = forged.find("\n-----END") - 6;
  forged[place] = forged[place] == 'A' ? 'B' : 'A';
  for (const std::string& nonsense : {std::string(), std::string("-----BEGIN CERTIFICATE REQUEST"),
                                      std::string(100'000, 'x'), *key, forged}) {
    EXPECT_TRUE(absl::IsInvalidArgument(KeyDigestOfRequest(nonsense).status()))
        << nonsense.substr(0, 60);
  }
}

}  // namespace
}  // namespace offshoot
