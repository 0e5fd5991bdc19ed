// The loop by itself: one thread, a store in memory, a clock that stands still, workers that are
// vectors of what they were told.
#include "coordinator/controller.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/temporary_directory.h"
#include "coordinator/store_memory.h"

namespace offshoot {
namespace {

using ::testing::HasSubstr;

// Counts transactions, and fails them on demand.
class ObservedStore : public MemoryStore {
 public:
  absl::StatusOr<std::int64_t> Commit(const StoreWrite& write) override {
    ++commits;
    if (!failure.ok()) return failure;
    return MemoryStore::Commit(write);
  }
  int commits = 0;
  absl::Status failure;
};

class RecordingPeer : public SessionPeer {
 public:
  void Send(SessionMessage message) override { sent.push_back(std::move(message)); }
  void Close(absl::Status status) override { closed = std::move(status); }
  template <typename T>
  std::vector<T> All() const {
    std::vector<T> found;
    for (const SessionMessage& message : sent) {
      if (const T* one = std::get_if<T>(&message)) found.push_back(*one);
    }
    return found;
  }
  std::vector<SessionMessage> sent;
  std::optional<absl::Status> closed;
};

class ControllerTest : public testing::Test {
 protected:
  ControllerTest() : artifacts(*ArtifactDirectory::Open(directory.File("artifacts"))) {
    MakeController();
  }

  // As a crash would: all but the store is gone.
  void MakeController() {
    controller = std::make_unique<Controller>(
        options, store, clock, *artifacts, outputs, signals,
        [this](std::shared_ptr<const JobSpec>,
               std::function<void(absl::StatusOr<ResolvedInputs>)> done) {
          resolutions.push_back(std::move(done));
        });
    ASSERT_TRUE(controller->Load().ok());
  }
  void Run() {
    while (controller->RunOnce()) {
    }
  }

  static JobDefinition Definition(const std::string& id, const std::string& request_id = "") {
    JobDefinition definition;
    definition.job_id = JobId(id);
    definition.request_id = request_id;
    definition.name = id;
    definition.spec_yaml = "base_model: /m.gguf\ndatasets:\n  - path: /d.jsonl\n    type: text\n";
    definition.spec_digest = "sha256:spec";
    return definition;
  }
  static ResolvedInputs Inputs() {
    ResolvedInputs resolved;
    resolved.inputs.preflight_key = "key";
    resolved.inputs.inputs = {{"/base_model/path", {{"", "sha256:m", 7}}, "/m.gguf", "sha256:m"},
                              {"/datasets/0/path", {{"", "sha256:d", 7}}, "/d.jsonl", "sha256:d"}};
    return resolved;
  }
  void Submit(const std::string& id, bool with_inputs = true) {
    controller->SubmitJob(
        Definition(id), with_inputs ? std::optional<ResolvedInputs>(Inputs()) : std::nullopt,
        [this](absl::StatusOr<JobId> job_id) { answers.push_back(std::move(job_id)); });
  }
  SessionId Connect(const std::string& worker_id, std::shared_ptr<RecordingPeer> peer,
                    std::vector<HeldAttemptInfo> held = {}) {
    const SessionId session = controller->OpenSession(std::move(peer));
    RegisterInfo info;
    info.protocol_version = kProtocolVersion;
    info.worker.worker_id = WorkerId(worker_id);
    info.worker.name = worker_id;
    info.worker.devices = {{"cpu:0", "cpu", 2, std::int64_t{8} << 30, "", ""}};
    info.held = std::move(held);
    controller->Register(session, std::move(info), [] {});
    return session;
  }

  std::map<SessionId, std::shared_ptr<RecordingPeer>> ConnectTwo() {
    std::map<SessionId, std::shared_ptr<RecordingPeer>> peers;
    for (const char* name : {"wrk-1", "wrk-2"}) {
      auto peer = std::make_shared<RecordingPeer>();
      peers[Connect(name, peer)] = peer;
    }
    return peers;
  }
  void PassPreflight(SessionId session, const std::string& id) {
    PreflightReport passed;
    passed.ok = true;
    passed.result_json = "{}";
    controller->Report(session, AttemptReport{JobId(id), 0, 1, passed}, [] {});
  }
  JobState StateOf(const std::string& id) { return store.GetJob(JobId(id))->state; }

  TemporaryDirectory directory;
  FakeClock clock{absl::FromUnixSeconds(1'700'000'000)};
  ControllerOptions options;
  ObservedStore store;
  std::unique_ptr<ArtifactDirectory> artifacts;
  AttemptOutputs outputs{directory.File("outputs"), OutputLimits()};
  JobSignals signals;
  std::vector<std::function<void(absl::StatusOr<ResolvedInputs>)>> resolutions;
  std::vector<absl::StatusOr<JobId>> answers;
  std::unique_ptr<Controller> controller;
};

TEST_F(ControllerTest, ManySubmits_ShareOneTransaction) {
  for (int i = 0; i < 200; ++i) Submit(absl::StrCat("job-", i));
  EXPECT_TRUE(answers.empty()) << "nothing is answered before it is durable";
  Run();
  EXPECT_EQ(store.commits, 1);
  ASSERT_EQ(answers.size(), 200u);
  for (const auto& answer : answers) EXPECT_TRUE(answer.ok());
}

TEST_F(ControllerTest, SubmitUntilAssignment_IsOneRound_WhenTheCheckIsCached) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PassPreflight(session, "job-a");
  Run();
  controller->Report(
      session, AttemptReport{JobId("job-a"), 1, 1, AttemptEnded{"BAD_SPEC", "", false, 0, 0, ""}},
      [] {});
  Run();
  const int commits = store.commits;
  const std::size_t before = peer->All<AssignMessage>().size();
  Submit("job-b");
  controller->RunOnce();
  EXPECT_EQ(store.commits, commits + 1);
  ASSERT_EQ(peer->All<AssignMessage>().size(), before + 1);
  EXPECT_EQ(peer->All<AssignMessage>().back().job_id, JobId("job-b"));
}

TEST_F(ControllerTest, SameRequestId_InOneBatch_IsOneJob) {
  auto answer = [this](absl::StatusOr<JobId> job_id) { answers.push_back(std::move(job_id)); };
  controller->SubmitJob(Definition("job-a", "request"), Inputs(), answer);
  controller->SubmitJob(Definition("job-b", "request"), Inputs(), answer);
  JobDefinition other = Definition("job-c", "request");
  other.spec_digest = "sha256:other";
  controller->SubmitJob(other, Inputs(), answer);
  Run();
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_EQ(*answers[0], JobId("job-a"));
  EXPECT_EQ(*answers[1], JobId("job-a"));
  EXPECT_TRUE(absl::IsAlreadyExists(answers[2].status()));
  EXPECT_TRUE(absl::IsNotFound(store.GetJob(JobId("job-b")).status()));
}

TEST_F(ControllerTest, FailedCommit_AnswersEverybodyAndForgetsIt) {
  auto peer = std::make_shared<RecordingPeer>();
  Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  store.failure = absl::ResourceExhaustedError("the disk is full");
  Submit("job-b");
  Run();
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_TRUE(absl::IsResourceExhausted(answers[1].status()));
  EXPECT_THAT(std::string(answers[1].status().message()), HasSubstr("the disk is full"));
  ASSERT_TRUE(peer->closed.has_value());
  EXPECT_TRUE(absl::IsUnavailable(*peer->closed));
  store.failure = absl::OkStatus();
  Submit("job-c");
  Run();
  EXPECT_TRUE(answers[2].ok());
  EXPECT_TRUE(absl::IsNotFound(store.GetJob(JobId("job-b")).status()));
  EXPECT_EQ(StateOf("job-a"), JobState::kValidating);
}

TEST_F(ControllerTest, FullQueue_RefusesRequestsAtOnce) {
  options.max_queue = 16;
  MakeController();
  for (int i = 0; i < 20; ++i) Submit(absl::StrCat("job-", i));
  ASSERT_EQ(answers.size(), 4u);
  for (const auto& answer : answers) EXPECT_TRUE(absl::IsResourceExhausted(answer.status()));
  Run();
  EXPECT_EQ(answers.size(), 20u);
}

TEST_F(ControllerTest, CrashBeforeInputsWereResolved_LooksForThemAgain) {
  Submit("job-a", /*with_inputs=*/false);
  Run();
  ASSERT_EQ(resolutions.size(), 1u);
  resolutions.clear();
  MakeController();
  ASSERT_EQ(resolutions.size(), 1u);
  resolutions[0](Inputs());
  Run();
  EXPECT_NE(store.GetJob(JobId("job-a"))->inputs, nullptr);
  Submit("job-b");  // carries the note that the effect is done
  Run();
  MakeController();
  EXPECT_EQ(resolutions.size(), 1u);
}

// An effect repeated after a failed write; meanwhile the data has changed.
TEST_F(ControllerTest, InputsFoundTwice_TheFirstAnswerCounts) {
  Submit("job-a", /*with_inputs=*/false);
  Run();
  store.failure = absl::UnavailableError("the disk failed");
  Submit("job-b");
  Run();
  store.failure = absl::OkStatus();
  Run();
  ASSERT_EQ(resolutions.size(), 2u);
  resolutions[0](Inputs());
  ResolvedInputs other = Inputs();
  other.inputs.preflight_key = "another key";
  resolutions[1](other);
  Run();
  EXPECT_EQ(store.GetJob(JobId("job-a"))->inputs->preflight_key, "key");
  controller->ChangeJob(JobId("job-a"), CancelRequested{}, [](const absl::Status&) {});
  Run();
  Submit("job-c");
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kCancelled);
}

TEST_F(ControllerTest, HeartbeatJustAfterAFailedCheck_DoesNotHoldUpTheNext) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PreflightReport failed;
  failed.reason_code = "DISK_FULL";
  failed.retryable = true;
  controller->Report(session, AttemptReport{JobId("job-a"), 0, 1, failed}, [] {});
  Run();
  // Sent before the worker had the acknowledgement.
  controller->Heartbeat(session, {{JobId("job-a"), 0}}, 0, [] {});
  Run();
  const std::size_t before = peer->All<AssignMessage>().size();
  clock.Advance(absl::Seconds(5));
  Run();
  EXPECT_EQ(peer->All<AssignMessage>().size(), before + 1);
}

TEST_F(ControllerTest, MissingEvent_IsAskedForByClosingTheSession) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PassPreflight(session, "job-a");
  Run();
  controller->Report(session, AttemptReport{JobId("job-a"), 1, 2, PublishingBegun{9}}, [] {});
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kStarting);
  ASSERT_TRUE(peer->closed.has_value());
  EXPECT_THAT(std::string(peer->closed->message()), HasSubstr("event 1 of attempt 1 of job job-a"));
  // The worker has lost the first one in a crash: what it still has counts.
  const SessionId again =
      Connect("wrk-1", std::make_shared<RecordingPeer>(), {{JobId("job-a"), 1, 2}});
  controller->Report(again, AttemptReport{JobId("job-a"), 1, 2, PublishingBegun{9}}, [] {});
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kPublishing);
}

TEST_F(ControllerTest, RestartWhileAJobRuns_ItsUseIsNotForgotten) {
  std::vector<TeamUse> use;
  options.schedule = [&use](const ClusterSnapshot& snapshot, absl::Time now) {
    use = snapshot.use;
    return Schedule(snapshot, now);
  };
  MakeController();
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PassPreflight(session, "job-a");
  Run();
  ASSERT_EQ(StateOf("job-a"), JobState::kStarting);
  clock.Advance(absl::Seconds(1000));
  MakeController();
  Run();
  ASSERT_EQ(use.size(), 1u);
  EXPECT_NEAR(use[0].device_seconds, 1000, 10);
}

TEST_F(ControllerTest, InputsThatCannotBeHad_FailTheJobWithTheSentence) {
  Submit("job-a", /*with_inputs=*/false);
  Run();
  resolutions[0](absl::NotFoundError("there is no /m.gguf"));
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kFailed);
  EXPECT_EQ(store.GetJob(JobId("job-a"))->message, "there is no /m.gguf");
}

TEST_F(ControllerTest, CrashBetweenResultAndPublishing_PublishesOnce) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PassPreflight(session, "job-a");
  Run();
  auto upload = artifacts->BeginUpload(DigestOf("{}"), 2, 0);
  ASSERT_TRUE((*upload)->Append("{}").ok());
  ASSERT_TRUE((*upload)->Finish().ok());
  ResultUploaded result;
  result.result.files = {{"adapter_config.json", DigestOf("{}"), 2}};
  result.last_step = 9;
  controller->Report(session, AttemptReport{JobId("job-a"), 1, 1, result}, [] {});
  controller->RunOnce();
  EXPECT_EQ(StateOf("job-a"), JobState::kPublishing);
  MakeController();
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kSucceeded);
  MakeController();
  Run();
  EXPECT_EQ(store.ListDerivatives({})->size(), 1u);
}

TEST_F(ControllerTest, ResultWhoseFilesAreMissing_IsTriedAgain) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PassPreflight(session, "job-a");
  Run();
  ResultUploaded result;
  result.result.files = {{"adapter_config.json", DigestOf("never uploaded"), 2}};
  controller->Report(session, AttemptReport{JobId("job-a"), 1, 1, result}, [] {});
  Run();
  const JobRecord job = *store.GetJob(JobId("job-a"));
  EXPECT_EQ(job.state, JobState::kQueued);
  EXPECT_EQ(job.reason_code, "RESULT_MISSING");
  EXPECT_TRUE(store.ListDerivatives({})->empty());
}

TEST_F(ControllerTest, SameQuestion_IsAskedOnceForAllJobs) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  for (const char* id : {"job-a", "job-b", "job-c"}) Submit(id);
  Run();
  ASSERT_EQ(peer->All<AssignMessage>().size(), 1u);
  PassPreflight(session, peer->All<AssignMessage>()[0].job_id.value());
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kStarting);
  EXPECT_EQ(StateOf("job-b"), JobState::kQueued);
  EXPECT_EQ(StateOf("job-c"), JobState::kQueued);
}

TEST_F(ControllerTest, JobCancelledDuringItsCheck_StopsTheCheck) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  controller->ChangeJob(JobId("job-a"), CancelRequested{},
                        [](const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; });
  Run();
  ASSERT_EQ(peer->All<StopMessage>().size(), 1u);
  EXPECT_EQ(peer->All<StopMessage>()[0].attempt, 0);
  // It was away when it was told: it is told again.
  controller->Heartbeat(session, {{JobId("job-a"), 0}}, 0, [] {});
  Run();
  EXPECT_EQ(peer->All<StopMessage>().size(), 2u);
}

TEST_F(ControllerTest, WorkerLeavesDuringTheCheck_AnotherGetsIt) {
  auto first = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", first);
  Submit("job-a");
  Run();
  ASSERT_EQ(first->All<AssignMessage>().size(), 1u);
  controller->CloseSession(session);
  auto second = std::make_shared<RecordingPeer>();
  Connect("wrk-2", second);
  Run();
  EXPECT_EQ(second->All<AssignMessage>().size(), 1u);
}

TEST_F(ControllerTest, ConnectedWorkerDoesNotHoldTheCheck_AnotherGetsIt) {
  const auto peers = ConnectTwo();
  Submit("job-a");
  Run();
  const auto checks = [&] {
    std::map<SessionId, std::size_t> counts;
    for (const auto& [session, peer] : peers) counts[session] = peer->All<AssignMessage>().size();
    return counts;
  };
  const std::map<SessionId, std::size_t> first = checks();
  const auto [holder, other] = first.begin()->second == 1
                                   ? std::pair(first.begin()->first, first.rbegin()->first)
                                   : std::pair(first.rbegin()->first, first.begin()->first);
  ASSERT_EQ(first.at(holder) + first.at(other), 1u);
  // While its worker says that it holds it, the check is its.
  for (int i = 0; i < 4; ++i) {
    clock.Advance(options.lease / 2);
    controller->Heartbeat(holder, {{JobId("job-a"), 0}}, 0, [] {});
    controller->Heartbeat(other, {}, 0, [] {});
    Run();
    ASSERT_EQ(checks(), first);
  }
  // The link is cut but not closed: nothing is heard of the holder.
  for (int i = 0; i < 2; ++i) {
    clock.Advance(options.lease / 2);
    controller->Heartbeat(other, {}, 0, [] {});
    Run();
  }
  EXPECT_EQ(checks().at(other), 1u);
  EXPECT_EQ(checks().at(holder), first.at(holder));
}

TEST_F(ControllerTest, LeaseOfAConnectedWorkerRunsOut_ItIsToldToStop) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PassPreflight(session, "job-a");
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kStarting);
  clock.Advance(options.lease);
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kQueued);
  ASSERT_EQ(peer->All<StopMessage>().size(), 1u);
  EXPECT_EQ(peer->All<StopMessage>()[0].reason_code, "FENCED");
  EXPECT_EQ(controller->NextDeadline(), clock.Now() + options.lifecycle.first_backoff);
}

TEST_F(ControllerTest, Heartbeats_KeepTheLease) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PassPreflight(session, "job-a");
  Run();
  for (int i = 0; i < 10; ++i) {
    clock.Advance(options.lease / 2);
    controller->Heartbeat(session, {{JobId("job-a"), 1}}, 0, [] {});
    Run();
    ASSERT_EQ(StateOf("job-a"), JobState::kStarting);
  }
  clock.Advance(options.lease / 2);
  controller->Heartbeat(session, {}, 0, [] {});  // it does not say that it holds the attempt
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kStarting);
  clock.Advance(options.lease / 2);
  controller->Heartbeat(session, {}, 0, [] {});
  Run();
  EXPECT_EQ(StateOf("job-a"), JobState::kQueued);
}

TEST_F(ControllerTest, FencedReport_ChangesNothing) {
  auto peer = std::make_shared<RecordingPeer>();
  const SessionId session = Connect("wrk-1", peer);
  Submit("job-a");
  Run();
  PassPreflight(session, "job-a");
  Run();
  clock.Advance(options.lease);
  Run();
  controller->Report(session, AttemptReport{JobId("job-a"), 1, 1, Started{1, 10}}, [] {});
  Run();
  ASSERT_FALSE(peer->All<AckMessage>().empty());
  EXPECT_TRUE(peer->All<AckMessage>().back().fenced);
  EXPECT_EQ(StateOf("job-a"), JobState::kQueued);
}

TEST_F(ControllerTest, FailedCheck_IsTriedOnAnotherWorker) {
  const auto peers = ConnectTwo();
  Submit("job-a");
  Run();
  for (const auto& [session, peer] : peers) {
    if (peer->All<AssignMessage>().empty()) continue;
    PreflightReport hung;
    hung.reason_code = "PREFLIGHT_HUNG";
    hung.retryable = true;
    controller->Report(session, AttemptReport{JobId("job-a"), 0, 1, hung}, [] {});
    break;
  }
  Run();
  clock.Advance(options.lifecycle.first_backoff);
  Run();
  for (const auto& [session, peer] : peers) EXPECT_EQ(peer->All<AssignMessage>().size(), 1u);
}

}  // namespace
}  // namespace offshoot
