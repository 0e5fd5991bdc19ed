// Journal, checkpoints, log and the small readers: what an attempt keeps on disk.

#include "common/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/digest.h"
#include "common/temporary_directory.h"
#include "worker/attempt_log.h"
#include "worker/checkpoint_files.h"
#include "worker/prune.h"
#include "worker/run_journal.h"
#include "worker/trainer_spec_file.h"

namespace offshoot::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

void WriteText(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

// As if nobody had touched it for a while.
void MakeOlder(const std::string& path) {
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(1));
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
    WriteText(log, bytes->substr(0, size));
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
  WriteText(log, bytes);
  EXPECT_THAT(LoadedSequences(), ElementsAre(1));
}

TEST_F(RunJournalTest, Load_OfADirectoryWithoutAssignment_RemovesIt) {
  WriteText(directory_.File("attempts/job-b.1/events.log"), "");
  WriteText(directory_.File("attempts/job-c.1/assignment.pb"), "\xff\xff");
  EXPECT_THAT(*journal_->Load(), SizeIs(1));
  EXPECT_FALSE(fs::exists(directory_.File("attempts/job-b.1")));
  EXPECT_FALSE(fs::exists(directory_.File("attempts/job-c.1")));
}

// --- checkpoints ---

class CheckpointFilesTest : public testing::Test {
 protected:
  CheckpointOnDisk Make(std::int64_t step, const std::string& name) {
    const std::string path = directory_.File("work/checkpoints/" + name);
    WriteText(path + "/state.json", "state");
    WriteText(
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
  WriteText(directory_.File("work/checkpoints/step-00000040/state.json"), "no manifest");
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
  WriteText(good.path + "/state.json", "other size");
  const auto other = Read(good);
  ASSERT_FALSE(other.ok());
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("step 10"));
  WriteText(good.path + "/manifest.json",
            R"({"step": 10, "files": [{"path": "../x", "digest": "sha256:0", "size_bytes": 1}]})");
  EXPECT_FALSE(Read(good).ok());
  WriteText(good.path + "/manifest.json", "[[[[");
  EXPECT_FALSE(Read(good).ok());
}

TEST_F(CheckpointFilesTest, LastTrainedStep_IsOfTheLastWholeLine) {
  EXPECT_EQ(FindLastTrainedStep(directory_.File("work")), 0);
  WriteText(directory_.File("work/training_metrics.jsonl"),
            "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 3");
  EXPECT_EQ(FindLastTrainedStep(directory_.File("work")), 2);
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
  WriteText(directory.File("old/data"), std::string(100, 'x'));
  MakeOlder(directory.File("old"));
  WriteText(directory.File("new/data"), std::string(100, 'x'));
  PruneDirectory(directory.path(), 150);
  EXPECT_FALSE(fs::exists(directory.File("old")));
  EXPECT_TRUE(fs::exists(directory.File("new")));
}

}  // namespace
}  // namespace offshoot::worker
