// Journal, caches, log and the small readers: what the worker keeps on disk.

#include "common/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/digest.h"
#include "common/temporary_directory.h"
#include "worker/attempt_log.h"
#include "worker/checkpoint_files.h"
#include "worker/digest_cache.h"
#include "worker/model_cache.h"
#include "worker/prune.h"
#include "worker/run_journal.h"
#include "worker/trainer_spec_file.h"

namespace offshoot::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

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

// --- journal ---

class RunJournalTest : public testing::Test {
 protected:
  void SetUp() override {
    assignment_.set_job_id("job-a");
    assignment_.set_attempt(2);
    auto journal = RunJournal::Open(directory_.File("attempts"));
    ASSERT_TRUE(journal.ok());
    journal_ = *std::move(journal);
    ASSERT_TRUE(journal_->Begin(key_, assignment_).ok());
  }

  v1::AttemptEvent Event(std::int64_t sequence) {
    v1::AttemptEvent event;
    event.set_sequence(sequence);
    event.mutable_started()->set_first_step(sequence);
    return event;
  }

  std::vector<std::int64_t> LoadedSequences() {
    auto entries = journal_->Load();
    std::vector<std::int64_t> sequences;
    if (!entries.ok() || entries->size() != 1) return sequences;
    for (const v1::AttemptEvent& event : entries->front().attempt.events) {
      sequences.push_back(event.sequence());
    }
    return sequences;
  }

  TemporaryDirectory directory_;
  v1::Assignment assignment_;
  const AttemptKey key_{JobId("job-a"), AttemptNumber{2}};
  std::unique_ptr<RunJournal> journal_;
};

TEST_F(RunJournalTest, Load_GivesBackWhatWasWritten) {
  const ProcessIdentity process{1234, 987654321987ULL, "boot"};
  ASSERT_TRUE(journal_->RecordProcesses(key_, {process}).ok());
  ASSERT_TRUE(journal_->AppendEvent(key_, Event(1)).ok());
  ASSERT_TRUE(journal_->AppendEvent(key_, Event(2)).ok());
  ASSERT_TRUE(journal_->RecordAck(key_, 1).ok());
  const auto entries = journal_->Load();
  ASSERT_TRUE(entries.ok());
  ASSERT_THAT(*entries, SizeIs(1));
  EXPECT_EQ(entries->front().attempt.assignment.job_id(), "job-a");
  EXPECT_THAT(entries->front().attempt.events, SizeIs(2));
  EXPECT_EQ(entries->front().attempt.acknowledged_sequence, 1);
  EXPECT_THAT(entries->front().processes, ElementsAre(process));
}

TEST_F(RunJournalTest, Load_AfterACrashInTheMiddleOfAnEvent_KeepsTheWholeOnes) {
  ASSERT_TRUE(journal_->AppendEvent(key_, Event(1)).ok());
  const std::string log = journal_->Directory(key_) + "/events.log";
  const auto whole = fs::file_size(log);
  ASSERT_TRUE(journal_->AppendEvent(key_, Event(2)).ok());
  const auto both = fs::file_size(log);
  const auto bytes = ReadFile(log);
  for (auto size = both - 1; size > whole; --size) {
    Write(log, bytes->substr(0, size));
    EXPECT_THAT(LoadedSequences(), ElementsAre(1)) << "cut at " << size;
    // What is written next must be found again.
    ASSERT_TRUE(journal_->AppendEvent(key_, Event(3)).ok());
    EXPECT_THAT(LoadedSequences(), ElementsAre(1, 3)) << "cut at " << size;
  }
}

TEST_F(RunJournalTest, Load_OfADamagedEvent_StopsBeforeIt) {
  ASSERT_TRUE(journal_->AppendEvent(key_, Event(1)).ok());
  ASSERT_TRUE(journal_->AppendEvent(key_, Event(2)).ok());
  const std::string log = journal_->Directory(key_) + "/events.log";
  std::string bytes = *ReadFile(log);
  bytes.back() ^= 1;
  Write(log, bytes);
  EXPECT_THAT(LoadedSequences(), ElementsAre(1));
}

TEST_F(RunJournalTest, Load_OfADirectoryWithoutAssignment_RemovesIt) {
  Write(directory_.File("attempts/job-b.1/events.log"), "");
  Write(directory_.File("attempts/job-c.1/assignment.pb"), "\xff\xff");
  EXPECT_THAT(*journal_->Load(), SizeIs(1));
  EXPECT_FALSE(fs::exists(directory_.File("attempts/job-b.1")));
  EXPECT_FALSE(fs::exists(directory_.File("attempts/job-c.1")));
}

// --- checkpoints ---

class CheckpointFilesTest : public testing::Test {
 protected:
  CheckpointOnDisk Make(std::int64_t step, const std::string& name) {
    const std::string path = directory_.File("work/checkpoints/" + name);
    Write(path + "/state.json", "state");
    Write(
        path + "/manifest.json",
        nlohmann::json{
            {"step", step},
            {"files", {{{"path", "state.json"}, {"digest", DigestOf("state")}, {"size_bytes", 5}}}}}
            .dump());
    return {step, path};
  }
  absl::StatusOr<v1::Checkpoint> Read(const CheckpointOnDisk& checkpoint) {
    return ReadCheckpoint(checkpoint, directory_.File("work"), 4);
  }
  TemporaryDirectory directory_;
};

TEST_F(CheckpointFilesTest, FindNewest_SkipsWhatIsNotComplete) {
  EXPECT_FALSE(FindNewestCheckpoint(directory_.File("work")).has_value());
  Make(10, "step-00000010");
  const CheckpointOnDisk newest = Make(20, "step-00000020");
  Make(30, "step-00000030.tmp");
  Write(directory_.File("work/checkpoints/step-00000040/state.json"), "no manifest");
  const auto found = FindNewestCheckpoint(directory_.File("work"));
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->step, 20);
  EXPECT_EQ(found->path, newest.path);
}

TEST_F(CheckpointFilesTest, Read_NamesEveryFileAndTheManifest) {
  const auto checkpoint = Read(Make(10, "step-00000010"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_EQ(checkpoint->files_size(), 2);
  EXPECT_EQ(checkpoint->files(0).digest(), DigestOf("state"));
  EXPECT_EQ(checkpoint->files(1).path(), "manifest.json");
  EXPECT_EQ(checkpoint->attempt(), 4);
}

TEST_F(CheckpointFilesTest, Read_OfWhatIsWrong_NamesTheCheckpoint) {
  const CheckpointOnDisk good = Make(10, "step-00000010");
  EXPECT_FALSE(Read({11, good.path}).ok()) << "another step";
  EXPECT_FALSE(Read({10, "/etc"}).ok()) << "outside";
  Write(good.path + "/state.json", "other size");
  const auto other = Read(good);
  ASSERT_FALSE(other.ok());
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("step 10"));
  Write(good.path + "/manifest.json",
        R"({"step": 10, "files": [{"path": "../x", "digest": "sha256:0", "size_bytes": 1}]})");
  EXPECT_FALSE(Read(good).ok());
  Write(good.path + "/manifest.json", "[[[[");
  EXPECT_FALSE(Read(good).ok());
}

TEST_F(CheckpointFilesTest, LastTrainedStep_IsOfTheLastWholeLine) {
  EXPECT_EQ(FindLastTrainedStep(directory_.File("work")), 0);
  Write(directory_.File("work/training_metrics.jsonl"),
        "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3");
  EXPECT_EQ(FindLastTrainedStep(directory_.File("work")), 2);
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

// --- log, spec, pruning ---

TEST(AttemptLogTest, Append_CountsOnAndStopsAtTheBound) {
  const TemporaryDirectory directory;
  {
    auto log = AttemptLog::Open(directory.File("log"), 10, 4);
    EXPECT_EQ(log->Append("12345"), "12345");
  }
  auto log = AttemptLog::Open(directory.File("log"), 10, 4);
  EXPECT_EQ(log->size_bytes(), 5);
  EXPECT_EQ(log->Append("6789abcdef"), "6789a");
  EXPECT_EQ(log->Append("more"), "");
  EXPECT_THAT(*ReadFile(directory.File("log")), HasSubstr("123456789a\n[the log is cut here"));
}

TEST(AttemptLogTest, Tail_IsWholeLines) {
  const TemporaryDirectory directory;
  auto log = AttemptLog::Open(directory.File("log"), 1 << 20, 12);
  for (int i = 0; i < 1000; ++i) log->Append("line " + std::to_string(i % 10) + "\n");
  EXPECT_EQ(log->Tail(), "line 9\n");
}

TEST(LocaliseSpecTest, PathsDeviceAndThreads_ArePutIn) {
  LocalSpec local;
  local.paths = {{"/base_model/path", "/cache/base"}, {"/datasets/1/path", "/cache/data"}};
  local.device = "cuda:1";
  local.threads = 3;
  const auto text = LocaliseSpec(
      R"({"base_model": {"path": "x"}, "datasets": [{"path": "a"}, {"path": "b"}]})", local);
  ASSERT_TRUE(text.ok()) << text.status();
  const nlohmann::json spec = nlohmann::json::parse(*text);
  EXPECT_EQ(spec["base_model"]["path"], "/cache/base");
  EXPECT_EQ(spec["datasets"][0]["path"], "a");
  EXPECT_EQ(spec["datasets"][1]["path"], "/cache/data");
  EXPECT_TRUE(spec["resume_from"].is_null());
  EXPECT_EQ(spec["device"], "cuda:1");
  EXPECT_EQ(spec["threads"], 3);
}

TEST(LocaliseSpecTest, PointerToNothing_IsNamed) {
  LocalSpec local;
  local.paths = {{"/datasets/7/path", "/cache/data"}};
  const auto text = LocaliseSpec(R"({"datasets": []})", local);
  ASSERT_FALSE(text.ok());
  EXPECT_THAT(std::string(text.status().message()), HasSubstr("/datasets/7/path"));
  EXPECT_FALSE(LocaliseSpec("no json", LocalSpec{}).ok());
}

TEST(PruneDirectoryTest, OldestEntries_GoFirst) {
  const TemporaryDirectory directory;
  Write(directory.File("old/data"), std::string(100, 'x'));
  Age(directory.File("old"));
  Write(directory.File("new/data"), std::string(100, 'x'));
  PruneDirectory(directory.path(), 150);
  EXPECT_FALSE(fs::exists(directory.File("old")));
  EXPECT_TRUE(fs::exists(directory.File("new")));
}

}  // namespace
}  // namespace offshoot::worker
