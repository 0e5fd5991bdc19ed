#include "common/digest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/files.h"
#include "common/temporary_directory.h"

namespace offshoot {
namespace {

// FIPS 180-2, appendix B.
constexpr char kAbc[] = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kEmpty[] = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

TEST(Digest, KnownText_GivesPublishedDigest) {
  EXPECT_EQ(DigestOf("abc"), kAbc);
  EXPECT_EQ(DigestOf(""), kEmpty);
}

TEST(Digest, FedInPieces_EqualsWhole) {
  Sha256 hash;
  hash.Update("a");
  hash.Update("");
  hash.Update("bc");
  EXPECT_EQ(hash.Finish(), kAbc);
}

TEST(Digest, OfFile_EqualsOfItsBytes) {
  TemporaryDirectory directory;
  const std::string data(3'000'001, 'x');
  ASSERT_TRUE(WriteFileAtomically(directory.File("f"), data).ok());
  EXPECT_EQ(DigestOfFile(directory.File("f")).value(), DigestOf(data));
}

TEST(Digest, OfMissingFile_NamesThePath) {
  const auto digest = DigestOfFile("/nowhere/at/all");
  EXPECT_EQ(digest.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(digest.status().message()), testing::HasSubstr("/nowhere/at/all"));
}

TEST(IsDigest, OnlyLowerCaseHexOfRightLength_IsTrue) {
  EXPECT_TRUE(IsDigest(kAbc));
  EXPECT_FALSE(IsDigest("sha256:abc"));
  EXPECT_FALSE(IsDigest(std::string(kAbc) + "0"));
  std::string upper = kAbc;
  upper[8] = 'A';
  EXPECT_FALSE(IsDigest(upper));
  EXPECT_FALSE(IsDigest(""));
}

TEST(DigestOfFiles, Order_DoesNotMatter_NameAndBytesDo) {
  const FileEntry a{"a", kAbc, 3}, b{"b", kEmpty, 0}, c{"c", kEmpty, 0};
  EXPECT_EQ(DigestOfFiles({a, b}), DigestOfFiles({b, a}));
  EXPECT_NE(DigestOfFiles({a, b}), DigestOfFiles({a, c}));
  EXPECT_NE(DigestOfFiles({a}), DigestOfFiles({FileEntry{"a", kEmpty, 0}}));
}

}  // namespace
}  // namespace offshoot
