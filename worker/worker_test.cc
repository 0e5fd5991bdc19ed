// The whole worker in this process, against a fake coordinator over real gRPC and a fake trainer
// in real processes.

#include "worker/worker.h"

#include <gmock/gmock.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "common/digest.h"
#include "common/process.h"
#include "common/temporary_directory.h"
#include "worker/fake_coordinator.h"
#include "worker/leftovers.h"
#include "worker/test_assignment.h"
#include "worker/trainer_process.h"

namespace offshoot::worker {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

bool IsEnd(const v1::AttemptEvent& event) {
  return event.has_ended() || event.has_result() || event.has_preflight();
}

// One line per distinct event in order of sequence: "1 started", "2 checkpointed 10", ...
std::vector<std::string> Story(const std::vector<v1::AttemptEvent>& events) {
  std::vector<std::string> story;
  std::int64_t newest = 0;
  for (const v1::AttemptEvent& event : events) {
    if (event.sequence() <= newest) continue;  // sent again
    newest = event.sequence();
    std::string what;
    if (event.has_started()) what = "started";
    if (event.has_checkpointed()) {
      what = "checkpointed " + std::to_string(event.checkpointed().checkpoint().step());
    }
    if (event.has_publishing()) what = "publishing";
    if (event.has_result()) what = "result";
    if (event.has_ended()) what = "ended " + event.ended().reason_code();
    if (event.has_preflight()) {
      what = "preflight " + (event.preflight().ok() ? "ok" : event.preflight().reason_code());
    }
    story.push_back(std::to_string(event.sequence()) + " " + what);
  }
  return story;
}

class WorkerTest : public testing::Test {
 protected:
  void StartWorker() {
    WorkerOptions options;
    options.state_directory = directory_.File("state");
    options.name = "tester";
    options.trainer_program = FakeTrainerPath();
    options.stop_timeout = stop_timeout_;
    options.leave_timeout = absl::Seconds(1);
    options.leftover_grace = absl::Milliseconds(200);
    options.inventory.set_cpu_cores(2);
    for (const char* id : {"cpu:0", "cpu:1"}) {
      v1::Device* device = options.inventory.add_devices();
      device->set_device_id(id);
      device->set_kind("cpu");
      device->set_threads(1);
    }
    absl::StatusOr<std::unique_ptr<Worker>> worker = Worker::Create(
        options,
        MakeCoordinatorChannels(coordinator_->address(), grpc::InsecureChannelCredentials()),
        launcher_);
    ASSERT_TRUE(worker.ok()) << worker.status();
    worker_ = *std::move(worker);
    loop_ = std::thread([this] { left_ = worker_->Run(); });
  }

  void LeaveWorker() {
    worker_->Leave();
    loop_.join();
    worker_.reset();
  }

  void TearDown() override {
    if (loop_.joinable()) LeaveWorker();
  }

  v1::Assignment Train(std::vector<std::string> script, int attempt = 1) {
    v1::Assignment assignment = TrainAssignment("job-a", attempt, std::move(script));
    *assignment.add_inputs() = base_input_;
    return assignment;
  }

  v1::AttemptEvent Run(const v1::Assignment& assignment) {
    EXPECT_TRUE(coordinator_->WaitForRegistrations(1));
    coordinator_->Assign(assignment);
    const std::optional<v1::AttemptEvent> end = coordinator_->WaitForEvent(IsEnd);
    EXPECT_TRUE(end.has_value()) << "no terminal event came";
    return end.value_or(v1::AttemptEvent());
  }

  bool NothingIsHeld() {
    return coordinator_->WaitUntil([this] {
      const auto beats = coordinator_->heartbeats();
      return !beats.empty() && beats.back().held_attempts().empty();
    });
  }

  bool WaitForFile(const std::string& path) {
    return coordinator_->WaitUntil([&path] { return std::filesystem::exists(path); });
  }

  std::vector<pid_t> Trainers(const std::string& key) {
    const std::vector<v1::Register> all = coordinator_->registrations();
    return FindMarkedProcesses(all.front().worker_id() + "/" + key);
  }

  TemporaryDirectory directory_;
  std::unique_ptr<FakeCoordinator> coordinator_ = std::make_unique<FakeCoordinator>();
  v1::Input base_input_ = [this] {
    v1::Input input;
    input.set_spec_pointer("/base_model/path");
    *input.add_files() = coordinator_->AddArtifact("config.json", "{}");
    *input.add_files() = coordinator_->AddArtifact("weights/model.bin", std::string(5000, 'w'));
    return input;
  }();
  absl::Duration stop_timeout_ = absl::Minutes(1);
  ProcessSpawner spawner_;
  RealTrainerLauncher launcher_{spawner_};
  std::unique_ptr<Worker> worker_;
  std::thread loop_;
  absl::Status left_;
};

TEST_F(WorkerTest, Register_AtStart_SaysWhoAndWhat) {
  StartWorker();
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  const v1::Register said = coordinator_->registrations().front();
  EXPECT_EQ(said.protocol_version(), 1);
  EXPECT_THAT(said.worker_id(), HasSubstr("wrk-"));
  EXPECT_EQ(said.name(), "tester");
  EXPECT_EQ(said.inventory().devices_size(), 2);
  EXPECT_THAT(said.held_attempts(), IsEmpty());
}

TEST_F(WorkerTest, Train_ToTheEnd_DeliversCheckpointsAndResultInOrder) {
  StartWorker();
  const v1::AttemptEvent end =
      Run(Train({"log hello", "start 20", "step 10", "checkpoint 10", "stored 10", "step 20",
                 "checkpoint 20", "stored 20", "result"}));
  ASSERT_TRUE(end.has_result()) << end.DebugString();
  EXPECT_THAT(Story(coordinator_->events()),
              ElementsAre("1 started", "2 checkpointed 10", "3 checkpointed 20", "4 publishing",
                          "5 result"));
  EXPECT_EQ(end.result().files_size(), 2);
  for (const v1::File& file : end.result().files()) {
    EXPECT_TRUE(coordinator_->HasArtifact(file.digest())) << file.path();
  }
  EXPECT_EQ(end.result().eval_loss(), 1.5);
  EXPECT_EQ(end.result().last_step(), 20);
  EXPECT_THAT(coordinator_->log(), HasSubstr("hello"));
  EXPECT_THAT(coordinator_->metrics(), SizeIs(20));
  EXPECT_TRUE(NothingIsHeld());
  EXPECT_THAT(Trainers("job-a.1"), IsEmpty());
}

TEST_F(WorkerTest, Session_AndUploads_HaveConnectionsOfTheirOwn) {
  StartWorker();
  const v1::AttemptEvent end =
      Run(Train({"start 10", "step 10", "checkpoint 10", "stored 10", "result"}));
  ASSERT_TRUE(end.has_result()) << end.DebugString();
  const std::set<std::string> session = coordinator_->session_peers();
  const std::set<std::string> uploads = coordinator_->upload_peers();
  ASSERT_THAT(session, SizeIs(1));
  ASSERT_THAT(uploads, Not(IsEmpty()));
  EXPECT_THAT(uploads, Not(Contains(*session.begin())));
}

// Rank 0 is here, rank 1 somewhere that cannot be reached.
TEST_F(WorkerTest, RanksThatExchangeArtifacts_GetEachOthersContributions) {
  v1::Assignment assignment =
      Train({"start 1", "contribute 1", "contributed 1 1", "contributed 0 1", "step 1", "result"});
  assignment.set_world_size(2);
  assignment.set_exchange_artifacts(true);
  StartWorker();
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(assignment);
  ASSERT_TRUE(coordinator_->WaitUntil([this] { return !coordinator_->contributions().empty(); }));
  const v1::Contribution own = coordinator_->contributions().front();
  EXPECT_EQ(own.rank(), 0);
  EXPECT_EQ(own.round(), 1);
  EXPECT_EQ(own.file().digest(), DigestOf("part of rank 0 by worker"));
  EXPECT_TRUE(coordinator_->HasArtifact(own.file().digest()));

  coordinator_->CutSessions();
  ASSERT_TRUE(
      coordinator_->WaitUntil([this] { return coordinator_->contributions().size() == 2; }));
  v1::CoordinatorMessage message;
  *message.mutable_contribution() = own;
  coordinator_->Send(message);
  message.mutable_contribution()->set_rank(1);
  *message.mutable_contribution()->mutable_file() = coordinator_->AddArtifact("", "part of rank 1");
  coordinator_->Send(message);
  const auto end = coordinator_->WaitForEvent(IsEnd);
  ASSERT_TRUE(end.has_value());
  EXPECT_TRUE(end->has_result()) << end->DebugString();
  EXPECT_THAT(coordinator_->log(), HasSubstr("[part of rank 1]\n[part of rank 0 by worker]\n"));
}

TEST_F(WorkerTest, Inputs_OfTwoAttempts_AreFetchedOnce) {
  StartWorker();
  ASSERT_TRUE(Run(Train({"start 1", "step 1", "result"})).has_result());
  const int fetched = coordinator_->downloads();
  EXPECT_EQ(fetched, 2);
  coordinator_->Assign(Train({"start 1", "step 1", "result"}, /*attempt=*/2));
  ASSERT_TRUE(coordinator_->WaitForEvent(
      [](const v1::AttemptEvent& event) { return event.attempt() == 2 && IsEnd(event); }));
  EXPECT_EQ(coordinator_->downloads(), fetched);
}

TEST_F(WorkerTest, Inputs_WithWrongBytes_AreRefused) {
  coordinator_->Corrupt(base_input_.files(1).digest());
  StartWorker();
  const v1::AttemptEvent end = Run(Train({"start 1"}));
  EXPECT_EQ(end.ended().reason_code(), "INPUT_CORRUPT");
  EXPECT_THAT(end.ended().message(), HasSubstr(base_input_.files(1).digest()));
  EXPECT_TRUE(end.ended().retryable());
}

TEST_F(WorkerTest, Inputs_NobodyHas_AreNamed) {
  v1::Assignment assignment = Train({"start 1"});
  assignment.mutable_inputs(0)->mutable_files(0)->set_digest(DigestOf("something else"));
  StartWorker();
  const v1::AttemptEvent end = Run(assignment);
  EXPECT_EQ(end.ended().reason_code(), "INPUT_MISSING");
  EXPECT_THAT(end.ended().message(), HasSubstr(DigestOf("something else")));
}

TEST_F(WorkerTest, Preflight_Passed_ReportsTheTrainersAnswer) {
  StartWorker();
  v1::Assignment assignment = Train({"preflight"}, /*attempt=*/0);
  assignment.set_kind(v1::ASSIGNMENT_KIND_PREFLIGHT);
  assignment.clear_device_ids();
  const v1::AttemptEvent end = Run(assignment);
  ASSERT_TRUE(end.has_preflight());
  EXPECT_TRUE(end.preflight().ok());
  EXPECT_EQ(nlohmann::json::parse(end.preflight().result_json())["rows"], 7);
}

TEST_F(WorkerTest, Preflight_OfBadData_IsNotTriedAgain) {
  StartWorker();
  v1::Assignment assignment = Train({"fail BAD_DATA"}, /*attempt=*/0);
  assignment.set_kind(v1::ASSIGNMENT_KIND_PREFLIGHT);
  const v1::AttemptEvent end = Run(assignment);
  EXPECT_FALSE(end.preflight().ok());
  EXPECT_EQ(end.preflight().reason_code(), "BAD_DATA");
  EXPECT_THAT(end.preflight().message(), HasSubstr("line 7"));
  EXPECT_FALSE(end.preflight().retryable());
}

TEST_F(WorkerTest, Trainer_KilledBySignal_SaysWhichAndKeepsTheLog) {
  StartWorker();
  const v1::AttemptEvent end = Run(Train({"start 20", "step 12", "log last words", "signal 9"}));
  EXPECT_EQ(end.ended().reason_code(), "TRAINER_KILLED");
  EXPECT_THAT(end.ended().message(), HasSubstr("SIGKILL"));
  EXPECT_THAT(end.ended().log_tail(), HasSubstr("last words"));
  EXPECT_TRUE(end.ended().retryable());
  EXPECT_EQ(end.ended().first_step(), 1);
  EXPECT_EQ(end.ended().last_step(), 12);
}

TEST_F(WorkerTest, Trainer_DiedBeforeItAnnouncedACheckpoint_StillDeliversIt) {
  StartWorker();
  const v1::AttemptEvent end = Run(Train({"start 20", "step 10", "silent 10", "signal 9"}));
  EXPECT_EQ(end.ended().reason_code(), "TRAINER_KILLED");
  EXPECT_THAT(Story(coordinator_->events()),
              ElementsAre("1 started", "2 checkpointed 10", "3 ended TRAINER_KILLED"));
}

TEST_F(WorkerTest, Trainer_TalkingNonsense_IsLoggedAndDoesNoHarm) {
  StartWorker();
  const v1::AttemptEvent end =
      Run(Train({"event not json", "event {\"event\": \"metrics\", \"step\": -4}",
                 "event {\"event\": \"dance\"}", "start 1", "step 1", "result"}));
  ASSERT_TRUE(end.has_result());
  EXPECT_TRUE(coordinator_->WaitUntil(
      [this] { return coordinator_->log().find("dance") != std::string::npos; }));
  EXPECT_THAT(coordinator_->log(), HasSubstr("not json"));
}

TEST_F(WorkerTest, Trainer_LyingAboutACheckpoint_IsEnded) {
  StartWorker();
  const v1::AttemptEvent end =
      Run(Train({"start 20", "step 10",
                 "event {\"event\": \"checkpoint\", \"time\": 0, \"step\": 10, \"path\": \"/etc\"}",
                 "hang"}));
  EXPECT_EQ(end.ended().reason_code(), "WORKER_ERROR");
  EXPECT_THAT(end.ended().message(), HasSubstr("checkpoint of step 10"));
  EXPECT_THAT(Trainers("job-a.1"), IsEmpty());
}

TEST_F(WorkerTest, Trainer_EndingWithoutAResult_IsAnError) {
  StartWorker();
  const v1::AttemptEvent end = Run(Train({"start 20", "exit 0"}));
  EXPECT_EQ(end.ended().reason_code(), "TRAINER_ERROR");
  EXPECT_THAT(end.ended().message(), HasSubstr("without leaving a result"));
}

TEST_F(WorkerTest, Verify_OfADifferentModel_FailsTheAttempt) {
  StartWorker();
  const std::string bad = directory_.File("state/attempts/job-a.1/work/result/bad");
  const v1::AttemptEvent end = Run(Train({"start 1", "step 1", "result", "touch " + bad}));
  EXPECT_EQ(end.ended().reason_code(), "VERIFY_FAILED");
  EXPECT_FALSE(end.ended().retryable());
}

TEST_F(WorkerTest, Stop_WithCheckpoint_DeliversItBeforeTheEnd) {
  StartWorker();
  const v1::Assignment assignment = Train({"start 20", "step 7", "wait-stop"});
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(assignment);
  ASSERT_TRUE(coordinator_->WaitUntil([this] { return coordinator_->metrics().size() == 7; }));
  coordinator_->Stop(assignment, /*checkpoint=*/true, "PAUSED");
  ASSERT_TRUE(coordinator_->WaitForEvent(IsEnd));
  EXPECT_THAT(Story(coordinator_->events()),
              ElementsAre("1 started", "2 checkpointed 7", "3 ended STOPPED"));
}

TEST_F(WorkerTest, Stop_OfATrainerThatNeverCheckpoints_EndsItAfterTheTimeout) {
  stop_timeout_ = absl::Milliseconds(100);
  StartWorker();
  const v1::Assignment assignment = Train({"start 20", "step 7", "hang"});
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(assignment);
  ASSERT_TRUE(coordinator_->WaitUntil([this] { return coordinator_->metrics().size() == 7; }));
  coordinator_->Stop(assignment, /*checkpoint=*/true, "PAUSED");
  const auto end = coordinator_->WaitForEvent(IsEnd);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->ended().reason_code(), "STOPPED");
}

TEST_F(WorkerTest, Cancel_OfATrainerThatIgnoresSigtermAndForks_LeavesNoProcessWithin5s) {
  StartWorker();
  const std::string ready = directory_.File("ready");
  const v1::Assignment assignment =
      Train({"start 20", "ignore-sigterm", "fork", "touch " + ready, "hang"});
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(assignment);
  ASSERT_TRUE(WaitForFile(ready));
  EXPECT_THAT(Trainers("job-a.1"), SizeIs(2));
  const auto begin = std::chrono::steady_clock::now();
  coordinator_->Stop(assignment, /*checkpoint=*/false, "CANCELLED");
  const auto end = coordinator_->WaitForEvent(IsEnd);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->ended().reason_code(), "STOPPED");
  EXPECT_THAT(Trainers("job-a.1"), IsEmpty());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST_F(WorkerTest, Fenced_Attempt_IsEndedAndNothingMoreOfItSent) {
  coordinator_->SetAcknowledge(false);
  StartWorker();
  const std::string go_on = directory_.File("go-on");
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(Train({"start 20", "step 1", "await " + go_on, "hang"}));
  const auto started =
      coordinator_->WaitForEvent([](const v1::AttemptEvent& event) { return event.has_started(); });
  ASSERT_TRUE(started.has_value());
  coordinator_->Acknowledge(*started, /*fenced=*/true);
  ASSERT_TRUE(NothingIsHeld());
  EXPECT_THAT(Trainers("job-a.1"), IsEmpty());
  EXPECT_THAT(coordinator_->events(), SizeIs(1));
  EXPECT_FALSE(std::filesystem::exists(directory_.File("state/attempts/job-a.1")));
}

TEST_F(WorkerTest, Upload_RefusedAsFenced_EndsTheAttempt) {
  coordinator_->SetUploadStatus(
      grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "attempt 1 is not the current one"));
  StartWorker();
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(Train({"start 20", "step 10", "checkpoint 10", "hang"}));
  ASSERT_TRUE(coordinator_->WaitForEvent(
      [](const v1::AttemptEvent& event) { return event.has_started(); }));
  ASSERT_TRUE(NothingIsHeld());
  EXPECT_THAT(Trainers("job-a.1"), IsEmpty());
}

TEST_F(WorkerTest, Session_Cut_DeliversWhatWasNotAcknowledgedAgainAndInOrder) {
  coordinator_->SetAcknowledge(false);
  StartWorker();
  const std::string go_on = directory_.File("go-on");
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(
      Train({"start 20", "step 10", "checkpoint 10", "await " + go_on, "step 20", "result"}));
  ASSERT_TRUE(coordinator_->WaitForEvent(
      [](const v1::AttemptEvent& event) { return event.has_checkpointed(); }));
  coordinator_->CutSessions();
  ASSERT_TRUE(coordinator_->WaitForRegistrations(2));
  const v1::Register again = coordinator_->registrations()[1];
  ASSERT_EQ(again.held_attempts_size(), 1);
  EXPECT_EQ(again.held_attempts(0).next_event_sequence(), 1);
  EXPECT_EQ(again.incarnation_id(), coordinator_->registrations()[0].incarnation_id());
  coordinator_->SetAcknowledge(true);
  std::ofstream{go_on};
  ASSERT_TRUE(coordinator_->WaitForEvent(IsEnd));
  std::vector<std::int64_t> sequences;
  for (const v1::AttemptEvent& event : coordinator_->events()) {
    sequences.push_back(event.sequence());
  }
  EXPECT_THAT(sequences, ElementsAre(1, 2, 1, 2, 3, 4));
  EXPECT_THAT(coordinator_->metrics(), SizeIs(20));
}

TEST_F(WorkerTest, CheckpointStored_OnlyAfterTheAcknowledgement) {
  coordinator_->SetAcknowledge(false);
  StartWorker();
  const std::string stored = directory_.File("stored");
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(
      Train({"start 20", "step 10", "checkpoint 10", "stored 10", "touch " + stored, "hang"}));
  const auto event = coordinator_->WaitForEvent(
      [](const v1::AttemptEvent& event) { return event.has_checkpointed(); });
  ASSERT_TRUE(event.has_value());
  EXPECT_FALSE(std::filesystem::exists(stored));
  coordinator_->Acknowledge(*event, /*fenced=*/false);
  EXPECT_TRUE(WaitForFile(stored));
}

TEST_F(WorkerTest, Coordinator_AwayForLongerThanGrace_CheckpointsStopsAndDeliversLater) {
  FakeCoordinator::Options options;
  options.unreachable_grace_ms = 300;
  coordinator_ = std::make_unique<FakeCoordinator>(options);
  v1::Assignment assignment = TrainAssignment("job-a", 1, {"start 20", "step 7", "wait-stop"});
  StartWorker();
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(assignment);
  ASSERT_TRUE(coordinator_->WaitUntil([this] { return coordinator_->metrics().size() == 7; }));
  options.port = coordinator_->port();
  coordinator_.reset();
  // The trainer stops while nobody listens: its directory shows the checkpoint.
  const std::string manifest =
      directory_.File("state/attempts/job-a.1/work/checkpoints/step-00000007/manifest.json");
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (!std::filesystem::exists(manifest) && absl::Now() < deadline) std::this_thread::yield();
  ASSERT_TRUE(std::filesystem::exists(manifest));
  coordinator_ = std::make_unique<FakeCoordinator>(options);
  const auto end = coordinator_->WaitForEvent(IsEnd);
  ASSERT_TRUE(end.has_value());
  EXPECT_EQ(end->ended().reason_code(), "COORDINATOR_UNREACHABLE");
  EXPECT_THAT(Story(coordinator_->events()), testing::Contains("2 checkpointed 7"));
}

TEST_F(WorkerTest, Leave_WhileTraining_DeliversACheckpointFirst) {
  StartWorker();
  ASSERT_TRUE(coordinator_->WaitForRegistrations(1));
  coordinator_->Assign(Train({"start 20", "step 7", "wait-stop"}));
  ASSERT_TRUE(coordinator_->WaitUntil([this] { return coordinator_->metrics().size() == 7; }));
  LeaveWorker();
  EXPECT_TRUE(left_.ok()) << left_;
  EXPECT_THAT(Story(coordinator_->events()),
              ElementsAre("1 started", "2 checkpointed 7", "3 ended WORKER_LEAVING"));
}

TEST_F(WorkerTest, Resume_FromACheckpointWrittenHere_NeedsNoDownload) {
  StartWorker();
  ASSERT_EQ(Run(Train({"start 20", "step 10", "checkpoint 10", "stored 10", "signal 9"}))
                .ended()
                .reason_code(),
            "TRAINER_KILLED");
  v1::Checkpoint checkpoint;
  for (const v1::AttemptEvent& event : coordinator_->events()) {
    if (event.has_checkpointed()) checkpoint = event.checkpointed().checkpoint();
  }
  const int downloads = coordinator_->downloads();
  v1::Assignment again = Train({"start 20", "step 20", "result"}, /*attempt=*/2);
  *again.mutable_resume_from() = checkpoint;
  coordinator_->Assign(again);
  const auto started = coordinator_->WaitForEvent(
      [](const v1::AttemptEvent& event) { return event.attempt() == 2 && event.has_started(); });
  ASSERT_TRUE(started.has_value());
  EXPECT_EQ(started->started().first_step(), 11);
  EXPECT_EQ(coordinator_->downloads(), downloads);
}

TEST_F(WorkerTest, Ranks_OnTwoDevices_AreOneProcessEach) {
  StartWorker();
  v1::Assignment assignment = Train({"start 1", "step 1", "result"});
  assignment.add_device_ids("cpu:1");
  ASSERT_TRUE(Run(assignment).has_result());
  EXPECT_THAT(coordinator_->metrics(), SizeIs(1)) << "only rank 0 speaks";
}

TEST_F(WorkerTest, Ranks_OneDies_TheOtherIsEndedAndTheCulpritNamed) {
  StartWorker();
  v1::Assignment assignment = Train({"start 1", "rank 1 signal 9", "hang"});
  assignment.add_device_ids("cpu:1");
  const v1::AttemptEvent end = Run(assignment);
  EXPECT_EQ(end.ended().reason_code(), "TRAINER_KILLED");
  EXPECT_THAT(end.ended().message(), HasSubstr("rank 1"));
}

TEST_F(WorkerTest, StateDirectory_TakenByAnotherWorker_IsRefusedInOneSentence) {
  StartWorker();
  WorkerOptions options;
  options.state_directory = directory_.File("state");
  const auto second = Worker::Create(
      options, MakeCoordinatorChannels(coordinator_->address(), grpc::InsecureChannelCredentials()),
      launcher_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(directory_.File("state")));
}

}  // namespace
}  // namespace offshoot::worker
