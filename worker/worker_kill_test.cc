// kill -9 of the real worker program: nothing is left running, and what was trained is delivered.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/process.h"
#include "common/temporary_directory.h"
#include "worker/fake_coordinator.h"
#include "worker/leftovers.h"
#include "worker/test_assignment.h"

namespace offshoot::worker {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

bool IsLastEvent(const v1::AttemptEvent& event) { return event.has_ended() || event.has_result(); }

class WorkerKillTest : public testing::Test {
 protected:
  void StartWorker() {
    SpawnOptions options;
    options.arguments = {ProgramDirectory() + "/../bin/offshoot-worker",
                         "--coordinator",
                         coordinator_.address(),
                         "--state-dir",
                         directory_.File("state"),
                         "--trainer",
                         FakeTrainerPath(),
                         "--devices",
                         "cpu:0@1"};
    absl::StatusOr<std::unique_ptr<ChildProcess>> child = spawner_.Spawn(options);
    ASSERT_TRUE(child.ok()) << child.status();
    worker_ = *std::move(child);
  }

  void KillWorker() {
    // The process alone, as `kill -9 PID` does; its trainers have groups of their own.
    kill(worker_->identity().pid, SIGKILL);
    ASSERT_TRUE(worker_->Wait(absl::Seconds(10)).has_value());
  }

  std::vector<pid_t> Trainers() {
    return FindMarkedProcesses(coordinator_.registrations().front().worker_id() + "/job-a.1");
  }

  bool WaitForNoTrainer(absl::Duration timeout) {
    const absl::Time deadline = absl::Now() + timeout;
    while (absl::Now() < deadline) {
      if (Trainers().empty()) return true;
      std::this_thread::yield();
    }
    return false;
  }

  void AssignAndWaitFor(const std::string& file, std::vector<std::string> script) {
    ASSERT_TRUE(coordinator_.WaitForRegistrations(1));
    coordinator_.Assign(TrainAssignment("job-a", 1, std::move(script)));
    ASSERT_TRUE(coordinator_.WaitUntil([&file] { return std::filesystem::exists(file); }));
  }

  TemporaryDirectory directory_;
  FakeCoordinator coordinator_;
  ProcessSpawner spawner_;
  std::unique_ptr<ChildProcess> worker_;
};

TEST_F(WorkerKillTest, Kill9_OfTheWorker_EndsItsTrainer) {
  StartWorker();
  const std::string ready = directory_.File("ready");
  AssignAndWaitFor(ready, {"start 20", "touch " + ready, "hang"});
  ASSERT_THAT(Trainers(), SizeIs(1));
  KillWorker();
  EXPECT_TRUE(WaitForNoTrainer(absl::Seconds(5)));
}

TEST_F(WorkerKillTest, Restart_EndsATrainerThatOutlivedTheWorker) {
  StartWorker();
  const std::string ready = directory_.File("ready");
  AssignAndWaitFor(ready, {"start 20", "ignore-sigterm", "fork", "touch " + ready, "hang"});
  KillWorker();
  ASSERT_THAT(Trainers(), SizeIs(2)) << "they ignore SIGTERM";
  StartWorker();
  const auto end = coordinator_.WaitForEvent(IsLastEvent, absl::Seconds(30));
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->ended().reason_code(), "WORKER_RESTARTED");
  EXPECT_TRUE(end->ended().retryable());
  EXPECT_THAT(Trainers(), IsEmpty());
}

TEST_F(WorkerKillTest, Restart_DeliversACheckpointThatWasNotUploaded) {
  StartWorker();
  const std::string ready = directory_.File("ready");
  // The checkpoint is complete on disk, but the worker never hears of it.
  AssignAndWaitFor(ready, {"start 40", "step 10", "checkpoint 10", "stored 10", "step 20",
                           "silent 20", "touch " + ready, "hang"});
  KillWorker();
  StartWorker();
  const auto end = coordinator_.WaitForEvent(IsLastEvent, absl::Seconds(30));
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->ended().reason_code(), "WORKER_RESTARTED");
  EXPECT_EQ(end->ended().first_step(), 1);
  std::vector<std::int64_t> steps;
  std::vector<std::int64_t> sequences;
  for (const v1::AttemptEvent& event : coordinator_.events()) {
    sequences.push_back(event.sequence());
    if (!event.has_checkpointed()) continue;
    steps.push_back(event.checkpointed().checkpoint().step());
    for (const v1::File& file : event.checkpointed().checkpoint().files()) {
      EXPECT_TRUE(coordinator_.HasArtifact(file.digest())) << file.path();
    }
  }
  EXPECT_THAT(steps, testing::ElementsAre(10, 20));
  EXPECT_THAT(sequences, testing::ElementsAre(1, 2, 3, 4));
  const std::vector<v1::Register> said = coordinator_.registrations();
  ASSERT_THAT(said, SizeIs(2));
  EXPECT_EQ(said[0].worker_id(), said[1].worker_id());
  EXPECT_NE(said[0].incarnation_id(), said[1].incarnation_id());
  EXPECT_THAT(said[1].held_attempts(), SizeIs(1));
}

TEST_F(WorkerKillTest, Restart_DeliversEventsThatWereNotAcknowledged) {
  StartWorker();
  coordinator_.SetAcknowledge(false);
  ASSERT_TRUE(coordinator_.WaitForRegistrations(1));
  coordinator_.Assign(TrainAssignment("job-a", 1, {"start 1", "step 1", "result"}));
  ASSERT_TRUE(coordinator_.WaitForEvent(IsLastEvent));
  KillWorker();
  coordinator_.SetAcknowledge(true);
  StartWorker();
  ASSERT_TRUE(coordinator_.WaitUntil([this] { return coordinator_.events().size() >= 6; }));
  std::vector<std::int64_t> sequences;
  for (const v1::AttemptEvent& event : coordinator_.events()) {
    sequences.push_back(event.sequence());
    EXPECT_FALSE(event.has_ended());
  }
  EXPECT_THAT(sequences, testing::ElementsAre(1, 2, 3, 1, 2, 3));
}

TEST_F(WorkerKillTest, Sigterm_WithNothingRunning_EndsWithZero) {
  StartWorker();
  ASSERT_TRUE(coordinator_.WaitForRegistrations(1));
  worker_->Signal(SIGTERM);
  const std::optional<ExitStatus> status = worker_->Wait(absl::Seconds(10));
  ASSERT_TRUE(status.has_value());
  EXPECT_FALSE(status->signalled);
  EXPECT_EQ(status->code, 0);
}

}  // namespace
}  // namespace offshoot::worker
