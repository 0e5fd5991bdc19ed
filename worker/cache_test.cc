// Digests and the cache of base models, data and checkpoints.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/digest.h"
#include "common/files.h"
#include "common/temporary_directory.h"
#include "worker/digest_cache.h"
#include "worker/model_cache.h"

namespace offshoot::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

void Write(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

// As if nobody had touched it for a while.
void Age(const std::string& path) {
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(1));
}

v1::File FileOf(const std::string& path, const std::string& bytes) {
  v1::File file;
  file.set_path(path);
  file.set_digest(DigestOf(bytes));
  file.set_size_bytes(static_cast<std::int64_t>(bytes.size()));
  return file;
}

// --- digests ---

TEST(DigestCacheTest, SameFile_IsHashedOnceAlsoAfterARestart) {
  const TemporaryDirectory directory;
  const std::string file = directory.File("model");
  Write(file, "weights");
  Age(file);
  const CancelToken token;
  {
    DigestCache cache(directory.File("digests"));
    EXPECT_EQ(*cache.Digest(file, token), DigestOf("weights"));
    EXPECT_EQ(*cache.Digest(file, token), DigestOf("weights"));
    EXPECT_EQ(cache.hashed(), 1u);
  }
  DigestCache again(directory.File("digests"));
  EXPECT_EQ(*again.Digest(file, token), DigestOf("weights"));
  EXPECT_EQ(again.hashed(), 0u);
}

TEST(DigestCacheTest, ChangedFile_IsHashedAgain) {
  const TemporaryDirectory directory;
  const std::string file = directory.File("model");
  Write(file, "weights");
  Age(file);
  const CancelToken token;
  DigestCache cache(directory.File("digests"));
  ASSERT_TRUE(cache.Digest(file, token).ok());
  Write(file, "WEIGHTS");  // same size, same inode
  EXPECT_EQ(*cache.Digest(file, token), DigestOf("WEIGHTS"));
}

TEST(DigestCacheTest, FileModifiedJustNow_IsNotTrustedLater) {
  const TemporaryDirectory directory;
  const std::string file = directory.File("model");
  Write(file, "weights");
  const CancelToken token;
  DigestCache cache(directory.File("digests"));
  ASSERT_TRUE(cache.Digest(file, token).ok());
  ASSERT_TRUE(cache.Digest(file, token).ok());
  EXPECT_EQ(cache.hashed(), 2u) << "a change within the clock's tick would not be seen";
}

TEST(DigestCacheTest, DamagedCacheFile_IsAnEmptyCache) {
  const TemporaryDirectory directory;
  Write(directory.File("digests"), "sha256:zz 1:2:3\n\n\xff\xfe garbage");
  const std::string file = directory.File("model");
  Write(file, "weights");
  DigestCache cache(directory.File("digests"));
  EXPECT_EQ(*cache.Digest(file, CancelToken()), DigestOf("weights"));
}

TEST(DigestCacheTest, Cancelled_GivesUp) {
  const TemporaryDirectory directory;
  const std::string file = directory.File("model");
  Write(file, "weights");
  CancelToken token;
  token.Cancel();
  DigestCache cache(directory.File("digests"));
  EXPECT_TRUE(absl::IsCancelled(cache.Digest(file, token).status()));
}

// --- model cache ---

class ModelCacheTest : public testing::Test {
 protected:
  void Open(std::int64_t max_bytes) {
    auto cache = ModelCache::Open(
        directory_.File("cache"), max_bytes, digests_,
        [this](const v1::File& file, const std::string& path, CancelToken&) -> absl::Status {
          ++fetched_;
          if (bytes_.count(file.digest()) == 0) return absl::NotFoundError("nobody has it");
          Write(path, bytes_[file.digest()]);
          return absl::OkStatus();
        });
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
  }
  v1::File Remote(const std::string& path, const std::string& bytes) {
    bytes_[DigestOf(bytes)] = bytes;
    return FileOf(path, bytes);
  }
  absl::StatusOr<ModelCache::Prepared> Prepare(const std::vector<v1::File>& files,
                                               const std::string& shared = "") {
    return cache_->Prepare(files, shared, token_);
  }

  TemporaryDirectory directory_;
  DigestCache digests_{directory_.File("digests")};
  std::map<std::string, std::string> bytes_;
  int fetched_ = 0;
  CancelToken token_;
  std::unique_ptr<ModelCache> cache_;
};

TEST_F(ModelCacheTest, Directory_LooksAsItShould) {
  Open(1 << 20);
  const auto prepared = Prepare({Remote("config.json", "{}"), Remote("sub/model.bin", "www")});
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(*ReadFile(prepared->path + "/config.json"), "{}");
  EXPECT_EQ(*ReadFile(prepared->path + "/sub/model.bin"), "www");
}

TEST_F(ModelCacheTest, PlainFile_AfterARestart_IsNotFetchedAgain) {
  const v1::File file = Remote("", "rows");
  Open(1 << 20);
  ASSERT_TRUE(Prepare({file}).ok());
  Open(1 << 20);
  const auto prepared = Prepare({file});
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(*ReadFile(prepared->path), "rows");
  EXPECT_EQ(fetched_, 1);
  EXPECT_EQ(cache_->size_bytes(), 4);
}

TEST_F(ModelCacheTest, SharedPath_WithTheRightDigest_IsUsedAsItIs) {
  Open(1 << 20);
  Write(directory_.File("shared/config.json"), "{}");
  const auto prepared = Prepare({FileOf("config.json", "{}")}, directory_.File("shared"));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(prepared->path, directory_.File("shared"));
  EXPECT_EQ(fetched_, 0);
  EXPECT_EQ(cache_->size_bytes(), 0);
  Write(directory_.File("shared.gguf"), "GGUF");
  const auto plain = Prepare({FileOf("", "GGUF")}, directory_.File("shared.gguf"));
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->path, directory_.File("shared.gguf"));
}

TEST_F(ModelCacheTest, SharedPath_WithOtherBytes_IsPassedOver) {
  Open(1 << 20);
  const v1::File file = Remote("config.json", "{}");
  Write(directory_.File("shared/config.json"), "[]");
  const auto prepared = Prepare({file}, directory_.File("shared"));
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(*ReadFile(prepared->path + "/config.json"), "{}");
  EXPECT_EQ(fetched_, 1);
}

TEST_F(ModelCacheTest, SharedPath_WithMoreThanIsWanted_ShowsOnlyWhatIsWanted) {
  Open(1 << 20);
  Write(directory_.File("shared/config.json"), "{}");
  Write(directory_.File("shared/chat_template.jinja"), "not part of the base model");
  const auto prepared = Prepare({FileOf("config.json", "{}")}, directory_.File("shared"));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  EXPECT_EQ(*ReadFile(prepared->path + "/config.json"), "{}");
  EXPECT_FALSE(fs::exists(prepared->path + "/chat_template.jinja"));
  EXPECT_EQ(fetched_, 0);
}

TEST_F(ModelCacheTest, DamagedCachedFile_IsFetchedAgain) {
  Open(1 << 20);
  const v1::File file = Remote("", "rows");
  const std::string path = Prepare({file})->path;
  Write(path, "ROWS");
  Age(path);
  const auto prepared = Prepare({file});
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(*ReadFile(prepared->path), "rows");
  EXPECT_EQ(fetched_, 2);
}

TEST_F(ModelCacheTest, Bound_EvictsTheLeastRecentlyUsedAndNeverWhatIsPinned) {
  Open(10);
  const v1::File a = Remote("", "aaaa");
  const v1::File b = Remote("", "bbbb");
  const v1::File c = Remote("", "cccc");
  auto pinned = Prepare({a});
  ASSERT_TRUE(pinned.ok());
  ASSERT_TRUE(Prepare({b}).ok());
  ASSERT_TRUE(Prepare({c}).ok());
  EXPECT_EQ(cache_->size_bytes(), 8);
  EXPECT_TRUE(fs::exists(pinned->path));
  EXPECT_EQ(fetched_, 3);
  ASSERT_TRUE(Prepare({a}).ok());
  EXPECT_EQ(fetched_, 3) << "a was pinned";
  ASSERT_TRUE(Prepare({b}).ok());
  EXPECT_EQ(fetched_, 4) << "b was evicted";
}

TEST_F(ModelCacheTest, Bound_TooSmallForWhatIsInUse_IsASentenceWithTheNumbers) {
  Open(6);
  const auto pinned = Prepare({Remote("", "aaaa")});
  ASSERT_TRUE(pinned.ok());
  const auto refused = Prepare({Remote("", "bbbb")});
  ASSERT_TRUE(absl::IsResourceExhausted(refused.status())) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("cache_max_bytes"));
}

TEST_F(ModelCacheTest, FailedFetch_LeavesNothingCounted) {
  Open(10);
  EXPECT_TRUE(absl::IsNotFound(Prepare({FileOf("", "unknown")}).status()));
  EXPECT_EQ(cache_->size_bytes(), 0);
}

TEST_F(ModelCacheTest, OldPartialDownload_IsRemovedAtTheStartAndANewOneKept) {
  const std::string left = directory_.File("cache/files/aa.partial");
  const std::string fresh = directory_.File("cache/files/bb.partial");
  Write(left, "half");
  fs::last_write_time(left, fs::file_time_type::clock::now() - std::chrono::hours(48));
  Write(fresh, "half");
  Open(1 << 20);
  EXPECT_FALSE(fs::exists(left));
  EXPECT_TRUE(fs::exists(fresh));
}

TEST_F(ModelCacheTest, UnsafePaths_AreRefused) {
  Open(1 << 20);
  EXPECT_FALSE(Prepare({Remote("../x", "1")}).ok());
  EXPECT_FALSE(Prepare({Remote("/etc/x", "1")}).ok());
  EXPECT_FALSE(Prepare({}).ok());
  EXPECT_EQ(fetched_, 0);
}

TEST_F(ModelCacheTest, SameFileWantedByManyAtOnce_IsFetchedOnce) {
  Open(1 << 20);
  const v1::File file = Remote("", std::string(100'000, 'x'));
  std::vector<std::thread> threads;
  std::atomic<int> succeeded = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      if (Prepare({file}).ok()) ++succeeded;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(succeeded, 8);
  EXPECT_EQ(fetched_, 1);
}

TEST_F(ModelCacheTest, Adopted_NeedsNoFetch) {
  Open(1 << 20);
  Write(directory_.File("checkpoint"), "state");
  cache_->Adopt(directory_.File("checkpoint"), FileOf("state.json", "state"));
  fs::remove(directory_.File("checkpoint"));
  const auto prepared = Prepare({FileOf("state.json", "state")});
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(*ReadFile(prepared->path + "/state.json"), "state");
  EXPECT_EQ(fetched_, 0);
}

}  // namespace
}  // namespace offshoot::worker
