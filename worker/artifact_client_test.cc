// Fetching and storing by digest, against a fake coordinator over real gRPC.

#include "worker/artifact_client.h"

#include <gmock/gmock.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "common/digest.h"
#include "common/files.h"
#include "common/temporary_directory.h"
#include "worker/fake_coordinator.h"
#include "worker/session.h"

namespace offshoot::worker {
namespace {

using ::testing::HasSubstr;

class ArtifactClientTest : public testing::Test {
 protected:
  absl::Status Download(const v1::File& file) {
    return client_.Download(file, directory_.File("got"), token_);
  }

  TemporaryDirectory directory_;
  FakeCoordinator coordinator_;
  ArtifactClient client_{
      MakeCoordinatorChannel(coordinator_.address(), grpc::InsecureChannelCredentials())};
  CancelToken token_;
  const AttemptKey key_{JobId("job-a"), AttemptNumber{1}};
};

TEST_F(ArtifactClientTest, Download_PutsTheWholeFileInPlace) {
  const std::string bytes(12'345, 'b');
  ASSERT_TRUE(Download(coordinator_.AddArtifact("model", bytes)).ok());
  EXPECT_EQ(*ReadFile(directory_.File("got")), bytes);
  EXPECT_FALSE(std::filesystem::exists(directory_.File("got.partial")));
}

TEST_F(ArtifactClientTest, Download_OfAnEmptyFile_Works) {
  ASSERT_TRUE(Download(coordinator_.AddArtifact("empty", "")).ok());
  EXPECT_EQ(*ReadFile(directory_.File("got")), "");
}

TEST_F(ArtifactClientTest, Download_BrokenOff_GoesOnWhereItWas) {
  std::string bytes;
  for (int i = 0; i < 10'000; ++i) bytes += static_cast<char>(i % 251);
  const v1::File file = coordinator_.AddArtifact("model", bytes);
  std::ofstream(directory_.File("got.partial")) << bytes.substr(0, 9'000);
  ASSERT_TRUE(Download(file).ok());
  EXPECT_EQ(*ReadFile(directory_.File("got")), bytes);
  EXPECT_EQ(coordinator_.downloaded_bytes(), 1'000);
}

TEST_F(ArtifactClientTest, Download_WithADamagedPartialFile_BeginsAgain) {
  const std::string bytes(10'000, 'b');
  const v1::File file = coordinator_.AddArtifact("model", bytes);
  std::ofstream(directory_.File("got.partial")) << std::string(9'000, 'x');
  ASSERT_TRUE(Download(file).ok());
  EXPECT_EQ(*ReadFile(directory_.File("got")), bytes);
}

TEST_F(ArtifactClientTest, Download_OfWrongBytes_LeavesNothing) {
  const v1::File file = coordinator_.AddArtifact("model", std::string(10'000, 'b'));
  coordinator_.Corrupt(file.digest());
  const absl::Status status = Download(file);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(file.digest()));
  EXPECT_FALSE(std::filesystem::exists(directory_.File("got")));
  EXPECT_FALSE(std::filesystem::exists(directory_.File("got.partial")));
}

TEST_F(ArtifactClientTest, Download_OnAFullDisk_SaysSo) {
  const v1::File file = coordinator_.AddArtifact("model", std::string(10'000, 'b'));
  std::filesystem::create_symlink("/dev/full", directory_.File("got.partial"));
  const absl::Status status = Download(file);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("disk is full"));
}

TEST_F(ArtifactClientTest, Download_Cancelled_GivesUpAlthoughNobodyAnswers) {
  const v1::File file = coordinator_.AddArtifact("model", "bytes");
  // Nobody listens there: the client retries until it is told to stop.
  ArtifactClient lost(MakeCoordinatorChannel("127.0.0.1:1", grpc::InsecureChannelCredentials()));
  absl::Status status;
  std::thread download([&] { status = lost.Download(file, directory_.File("got"), token_); });
  token_.Cancel();
  download.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

TEST_F(ArtifactClientTest, Upload_IsThereAfterwardsAndRepeatsCostNothing) {
  const std::string bytes(3 << 20, 'u');
  std::ofstream(directory_.File("file")) << bytes;
  v1::File file;
  file.set_digest(DigestOf(bytes));
  file.set_size_bytes(static_cast<std::int64_t>(bytes.size()));
  ASSERT_TRUE(client_.Upload(file, directory_.File("file"), key_, token_).ok());
  EXPECT_TRUE(coordinator_.HasArtifact(file.digest()));
  std::filesystem::remove(directory_.File("file"));
  EXPECT_TRUE(client_.Upload(file, directory_.File("file"), key_, token_).ok());
}

TEST_F(ArtifactClientTest, Upload_RefusedForAnotherAttempt_IsAborted) {
  std::ofstream(directory_.File("file")) << "x";
  v1::File file;
  file.set_digest(DigestOf("x"));
  file.set_size_bytes(1);
  coordinator_.SetUploadStatus(
      grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "attempt 2 is the current one"));
  const absl::Status status = client_.Upload(file, directory_.File("file"), key_, token_);
  EXPECT_TRUE(absl::IsAborted(status)) << status;
}

TEST_F(ArtifactClientTest, Upload_TakenOverByAnother_IsTriedAgain) {
  std::ofstream(directory_.File("file")) << "x";
  v1::File file;
  file.set_digest(DigestOf("x"));
  file.set_size_bytes(1);
  for (const grpc::StatusCode code :
       {grpc::StatusCode::ABORTED, grpc::StatusCode::OUT_OF_RANGE}) {
    coordinator_.SetUploadStatus(grpc::Status(code, "ask for its offset and go on"), 2);
    const absl::Status status = client_.Upload(file, directory_.File("file"), key_, token_);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(coordinator_.HasArtifact(file.digest()));
  }
}

}  // namespace
}  // namespace offshoot::worker
