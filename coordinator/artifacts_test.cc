#include "coordinator/artifacts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/files.h"
#include "common/temporary_directory.h"

namespace offshoot {
namespace {

class ArtifactsTest : public testing::Test {
 protected:
  ArtifactsTest() : artifacts(*ArtifactDirectory::Open(directory.path())) {}
  void Store(const std::string& bytes) {
    auto upload =
        artifacts->BeginUpload(DigestOf(bytes), static_cast<std::int64_t>(bytes.size()), 0);
    ASSERT_TRUE(upload.ok()) << upload.status();
    ASSERT_TRUE((*upload)->Append(bytes).ok());
    ASSERT_TRUE((*upload)->Finish().ok());
  }
  TemporaryDirectory directory;
  std::unique_ptr<ArtifactDirectory> artifacts;
};

TEST_F(ArtifactsTest, Upload_AppearsOnlyWhenWhole) {
  const std::string digest = DigestOf("abcdef");
  auto upload = artifacts->BeginUpload(digest, 6, 0);
  ASSERT_TRUE(upload.ok());
  ASSERT_TRUE((*upload)->Append("abc").ok());
  EXPECT_EQ(artifacts->Find(digest), std::nullopt);
  EXPECT_TRUE(absl::IsOutOfRange((*upload)->Finish()));
  EXPECT_TRUE(absl::IsOutOfRange((*upload)->Append("defg")));
  ASSERT_TRUE((*upload)->Append("def").ok());
  ASSERT_TRUE((*upload)->Finish().ok());
  EXPECT_EQ(artifacts->Find(digest), 6);
  auto reader = artifacts->OpenArtifact(digest);
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(*(*reader)->Read(2, 3), "cde");
  EXPECT_EQ(*(*reader)->Read(6, 3), "");
}

TEST_F(ArtifactsTest, EmptyFile_IsAnArtifactToo) {
  Store("");
  EXPECT_EQ(artifacts->Find(DigestOf("")), 0);
}

TEST_F(ArtifactsTest, ResumedUpload_IsCheckedAsAWhole) {
  const std::string digest = DigestOf("abcdef");
  {
    auto upload = artifacts->BeginUpload(digest, 6, 0);
    ASSERT_TRUE((*upload)->Append("abX").ok());
  }
  EXPECT_EQ(artifacts->PartSize(digest), 3);
  auto wrong = artifacts->BeginUpload(digest, 6, 3);
  ASSERT_TRUE((*wrong)->Append("def").ok());
  EXPECT_TRUE(absl::IsDataLoss((*wrong)->Finish()));
  EXPECT_EQ(artifacts->PartSize(digest), 0);
  EXPECT_TRUE(absl::IsOutOfRange(artifacts->BeginUpload(digest, 6, 3).status()));
}

TEST_F(ArtifactsTest, TwoUploadsOfOneDigest_TheLaterWins) {
  const std::string digest = DigestOf("abc");
  auto first = artifacts->BeginUpload(digest, 3, 0);
  auto second = artifacts->BeginUpload(digest, 3, 0);
  EXPECT_TRUE(absl::IsAborted((*first)->Append("abc")));
  ASSERT_TRUE((*second)->Append("abc").ok());
  EXPECT_TRUE(absl::IsAborted((*first)->Finish()));
  ASSERT_TRUE((*second)->Finish().ok());
  EXPECT_TRUE(artifacts->BeginUpload(digest, 3, 0).value()->already_there());
}

TEST_F(ArtifactsTest, SenselessUploads_AreRefused) {
  const std::string digest = DigestOf("abc");
  EXPECT_TRUE(absl::IsInvalidArgument(artifacts->BeginUpload("abc", 3, 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(artifacts->BeginUpload(digest, -1, 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(artifacts->BeginUpload(digest, 3, 4).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(artifacts->BeginUpload(digest, std::int64_t{1} << 62, 0).status()));
  // More than the disk has, but not more than a disk may have.
  const absl::Status full = artifacts->BeginUpload(digest, std::int64_t{3} << 40, 0).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
}

TEST_F(ArtifactsTest, Sweep_RemovesWhatIsOldAndNotNeeded) {
  Store("kept");
  Store("dropped");
  {
    auto part = artifacts->BeginUpload(DigestOf("unfinished"), 10, 0);
    ASSERT_TRUE((*part)->Append("unf").ok());
  }
  const auto is_needed = [](const std::string& digest) { return digest == DigestOf("kept"); };
  artifacts->Sweep(absl::Now() - absl::Hours(1), is_needed);
  EXPECT_TRUE(artifacts->Find(DigestOf("dropped")).has_value()) << "too young";
  artifacts->Sweep(absl::Now() + absl::Seconds(1), is_needed);
  EXPECT_TRUE(artifacts->Find(DigestOf("kept")).has_value());
  EXPECT_FALSE(artifacts->Find(DigestOf("dropped")).has_value());
  EXPECT_EQ(artifacts->PartSize(DigestOf("unfinished")), 0);
}

}  // namespace
}  // namespace offshoot
