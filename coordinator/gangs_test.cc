// Gangs over several workers: where their ranks meet, and how they end. The loop by itself, as in
// controller_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/temporary_directory.h"
#include "coordinator/controller.h"
#include "coordinator/store_memory.h"

namespace offshoot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class Peer : public SessionPeer {
 public:
  void Send(SessionMessage message) override { sent.push_back(std::move(message)); }
  void Close(absl::Status) override {}
  template <typename T>
  std::vector<T> All() const {
    std::vector<T> found;
    for (const SessionMessage& message : sent) {
      if (const T* one = std::get_if<T>(&message)) found.push_back(*one);
    }
    return found;
  }
  std::vector<SessionMessage> sent;
};

struct Machine {
  std::shared_ptr<Peer> peer;
  SessionId session = 0;
  std::int64_t sequence = 0;
};

class GangsTest : public testing::Test {
 protected:
  GangsTest() : artifacts_(*ArtifactDirectory::Open(directory_.File("artifacts"))) {
    controller_ = std::make_unique<Controller>(
        options_, store_, clock_, *artifacts_, outputs_, signals_,
        [](std::shared_ptr<const JobSpec>, std::function<void(absl::StatusOr<ResolvedInputs>)>) {});
    EXPECT_TRUE(controller_->Load().ok());
  }

  void SetUp() override {
    for (const char* name : {"ant", "bee"}) Connect(name);
    StartGang();
  }

  void Run() {
    while (controller_->RunOnce()) {
    }
  }

  void Connect(const std::string& name, std::vector<HeldAttemptInfo> held = {}) {
    Machine& machine = machines_[name];
    machine.peer = std::make_shared<Peer>();
    machine.session = controller_->OpenSession(machine.peer);
    RegisterInfo info;
    info.protocol_version = kProtocolVersion;
    info.worker.worker_id = WorkerId(name);
    info.worker.name = name;
    info.worker.address = address_;
    info.worker.devices = {{"cpu:0", "cpu", 2, std::int64_t{8} << 30, "", ""}};
    info.held = std::move(held);
    controller_->Register(machine.session, std::move(info), [] {});
    Run();
  }

  void StartGang() {
    JobDefinition definition;
    definition.job_id = kJob;
    definition.name = "gang";
    definition.spec_yaml =
        "base_model: /m.gguf\ndatasets:\n  - path: /d.jsonl\n    type: text\n"
        "resources: {ranks: 2}\n";
    definition.requirements.ranks = 2;
    definition.requirements.min_ranks = least_ranks_;
    definition.requirements.exchange_artifacts = exchange_;
    ResolvedInputs resolved;
    resolved.inputs.preflight_key = "key";
    resolved.inputs.inputs = {{"/base_model/path", {{"", "sha256:m", 7}}, "/m.gguf", "sha256:m"},
                              {"/datasets/0/path", {{"", "sha256:d", 7}}, "/d.jsonl", "sha256:d"}};
    controller_->SubmitJob(std::move(definition), resolved, [](absl::StatusOr<JobId>) {});
    Run();
    PreflightReport passed;
    passed.ok = true;
    passed.result_json = "{}";
    for (auto& [name, machine] : machines_) {
      if (machine.peer->All<AssignMessage>().empty()) continue;
      controller_->Report(machine.session, AttemptReport{kJob, 0, 1, passed}, [] {});
    }
    Run();
    ASSERT_EQ(Job().state, JobState::kStarting);
    leader_ = Job().attempts.back().members[0].worker_name;
    member_ = Job().attempts.back().members.back().worker_name;
  }

  template <typename Event>
  void Say(const std::string& name, Event event) {
    Machine& machine = machines_.at(name);
    controller_->Report(machine.session, AttemptReport{kJob, 1, ++machine.sequence, event}, [] {});
    Run();
  }
  static AttemptEnded Ended(const std::string& reason, bool retryable = true) {
    return AttemptEnded{reason, "said " + reason, retryable, 1, 5, ""};
  }
  void Pass(absl::Duration duration) {
    clock_.Advance(duration);
    Run();
  }
  JobRecord Job() { return *store_.GetJob(kJob); }
  bool WasFenced(const std::string& name) {
    for (const StopMessage& stop : machines_.at(name).peer->All<StopMessage>()) {
      if (stop.reason_code == "FENCED" && stop.attempt == 1) return true;
    }
    return false;
  }

  const JobId kJob{"job-a"};
  TemporaryDirectory directory_;
  FakeClock clock_{absl::FromUnixSeconds(1'700'000'000)};
  ControllerOptions options_;
  MemoryStore store_;
  std::unique_ptr<ArtifactDirectory> artifacts_;
  AttemptOutputs outputs_{directory_.File("outputs"), OutputLimits()};
  JobSignals signals_;
  std::unique_ptr<Controller> controller_;
  std::map<std::string, Machine> machines_;
  std::string address_ = "10.0.0.1";
  bool exchange_ = false;
  int least_ranks_ = 0;
  std::string leader_;
  std::string member_;
};

TEST_F(GangsTest, PlacedOverTwoWorkers_EachHasItsPart) {
  const auto first = machines_.at(leader_).peer->All<AssignMessage>().back();
  const auto second = machines_.at(member_).peer->All<AssignMessage>().back();
  EXPECT_EQ(first.first_rank, 0);
  EXPECT_EQ(second.first_rank, 1);
  EXPECT_EQ(first.world_size, 2);
  EXPECT_EQ(second.world_size, 2);
}

TEST_F(GangsTest, LeaderListens_TheOthersAreToldWhereAndAgainWhenTheyComeBack) {
  Say(leader_, ListeningReport{"10.0.0.7", 4711});
  ASSERT_EQ(machines_.at(member_).peer->All<MeetAtMessage>().size(), 1u);
  const MeetAtMessage told = machines_.at(member_).peer->All<MeetAtMessage>()[0];
  EXPECT_EQ(told.address, "10.0.0.7");
  EXPECT_EQ(told.port, 4711);
  EXPECT_TRUE(machines_.at(leader_).peer->All<MeetAtMessage>().empty());
  Connect(member_, {{kJob, 1}});
  EXPECT_EQ(machines_.at(member_).peer->All<MeetAtMessage>().size(), 1u);
}

TEST_F(GangsTest, EverybodyLostTheGang_OneAttemptEndsAndSpendsOneRetry) {
  Say(leader_, Started{1, 10});
  Say(member_, Ended("RANK_LOST"));
  EXPECT_EQ(Job().state, JobState::kRunning) << "the leader may still upload a checkpoint";
  Say(leader_, Ended("RANK_LOST"));
  EXPECT_EQ(Job().state, JobState::kQueued);
  EXPECT_EQ(Job().failures, 1);
  EXPECT_EQ(Job().attempts.size(), 1u);
}

TEST_F(GangsTest, CauseComesAfterItsConsequence_TheCauseIsTold) {
  Say(leader_, Started{1, 10});
  Say(leader_, Ended("RANK_LOST"));
  EXPECT_EQ(Job().state, JobState::kRunning);
  Say(member_, Ended("OUT_OF_MEMORY", false));
  EXPECT_EQ(Job().state, JobState::kFailed);
  EXPECT_EQ(Job().reason_code, "OUT_OF_MEMORY");
  EXPECT_EQ(Job().culprit, member_);
}

TEST_F(GangsTest, NobodyKnowsTheCause_TheGangEndsAnyway) {
  Say(leader_, Started{1, 10});
  Say(leader_, Ended("RANK_LOST"));
  Pass(absl::Seconds(2));
  EXPECT_EQ(Job().state, JobState::kQueued);
  EXPECT_EQ(Job().reason_code, "RANK_LOST");
  EXPECT_TRUE(WasFenced(member_));
}

TEST_F(GangsTest, AllHaveEndedAndTheCoordinatorIsRestarted_TheGangEndsAfterALease) {
  Say(leader_, Started{1, 10});
  Say(leader_, Ended("RANK_LOST"));
  Say(member_, Ended("STOPPED"));
  EXPECT_EQ(Job().state, JobState::kRunning);
  ASSERT_TRUE(controller_->Load().ok());
  Pass(options_.lease);
  EXPECT_EQ(Job().state, JobState::kQueued);
}

// Its devices may be another job's by then.
TEST_F(GangsTest, MemberThatHasEnded_SaysNothingMore) {
  Say(leader_, Started{1, 10});
  Say(member_, Ended("STOPPED"));
  Say(member_, Started{1, 10});
  EXPECT_TRUE(machines_.at(member_).peer->All<AckMessage>().back().fenced);
  EXPECT_TRUE(Job().attempts.back().MemberOn(WorkerId(member_))->ended);
  Say(member_, Ended("STOPPED"));
  EXPECT_FALSE(machines_.at(member_).peer->All<AckMessage>().back().fenced) << "no news";
  EXPECT_EQ(Job().state, JobState::kRunning);
}

TEST_F(GangsTest, WorkerWentAway_IsNamedAndSpendsNoRetry) {
  Say(leader_, Started{1, 10});
  controller_->CloseSession(machines_.at(member_).session);
  Run();
  EXPECT_EQ(Job().state, JobState::kRunning) << "it may come back";
  Say(leader_, Ended("RANK_LOST"));
  EXPECT_EQ(Job().state, JobState::kQueued);
  EXPECT_EQ(Job().reason_code, "WORKER_LOST");
  EXPECT_THAT(Job().message, HasSubstr(member_));
  EXPECT_EQ(Job().failures, 0);
}

TEST_F(GangsTest, LeaderWentAway_ItIsNotWaitedFor) {
  Say(leader_, Started{1, 10});
  Say(member_, Ended("RANK_LOST"));
  controller_->CloseSession(machines_.at(leader_).session);
  Run();
  EXPECT_EQ(Job().state, JobState::kQueued);
  EXPECT_EQ(Job().reason_code, "WORKER_LOST");
  EXPECT_THAT(Job().message, HasSubstr(leader_));
}

TEST_F(GangsTest, WorkerLeaves_TheLeadersCheckpointIsWaitedForAndNoRetrySpent) {
  Say(leader_, Started{1, 10});
  Say(member_, Ended("WORKER_LEAVING"));
  EXPECT_EQ(Job().state, JobState::kRunning);
  Say(leader_, Ended("RANK_LOST"));
  EXPECT_EQ(Job().state, JobState::kQueued);
  EXPECT_EQ(Job().reason_code, "WORKER_LEAVING");
  EXPECT_EQ(Job().failures, 0);
}

TEST_F(GangsTest, RankHung_EndsTheGangAtOnce) {
  Say(leader_, Started{1, 10});
  Say(member_, Ended("RANK_HUNG"));
  EXPECT_EQ(Job().state, JobState::kQueued);
  EXPECT_EQ(Job().reason_code, "RANK_HUNG");
  EXPECT_TRUE(WasFenced(leader_));
}

TEST_F(GangsTest, RankHung_TheGangIsRestartedWithoutItsWorker) {
  Say(leader_, Started{1, 10});
  Say(member_, Ended("RANK_HUNG"));
  Connect("cat");
  Pass(absl::Seconds(2));
  ASSERT_EQ(Job().attempts.size(), 2u);
  EXPECT_EQ(Job().attempts.back().MemberOn(WorkerId(member_)), nullptr);
  EXPECT_NE(Job().attempts.back().MemberOn(WorkerId("cat")), nullptr);
}

TEST_F(GangsTest, RankHungOfTheLeader_ItIsLeftOutToo) {
  Say(leader_, Started{1, 10});
  Say(leader_, Ended("RANK_HUNG"));
  ASSERT_TRUE(controller_->Load().ok()) << "it is known after a restart of the coordinator";
  Connect("cat");
  Connect(member_);
  Connect(leader_);
  Pass(absl::Seconds(2));
  ASSERT_EQ(Job().attempts.size(), 2u);
  EXPECT_EQ(Job().attempts.back().MemberOn(WorkerId(leader_)), nullptr);
}

TEST_F(GangsTest, MemberFinishes_TheGangGoesOnUntilTheLeaderHasTheResult) {
  Say(leader_, Started{1, 10});
  Say(member_, Ended("FINISHED", false));
  EXPECT_EQ(Job().state, JobState::kRunning);
  Say(leader_, PublishingBegun{10});
  EXPECT_EQ(Job().state, JobState::kPublishing);
}

TEST_F(GangsTest, StaleAttemptOfAMember_IsFenced) {
  Say(leader_, Started{1, 10});
  Say(member_, Ended("RANK_HUNG"));
  Pass(absl::Seconds(2));
  ASSERT_EQ(Job().attempts.size(), 2u);
  Machine& machine = machines_.at(leader_);
  controller_->Report(machine.session,
                      AttemptReport{kJob, 1, ++machine.sequence, Ended("BAD_DATA", false)}, [] {});
  controller_->Report(machine.session, AttemptReport{kJob, 1, ++machine.sequence, Started{3, 10}},
                      [] {});
  Run();
  EXPECT_EQ(Job().state, JobState::kStarting);
  EXPECT_TRUE(machine.peer->All<AckMessage>().back().fenced);
}

// Workers that nobody reaches; the job's ranks exchange artifacts.
class ExchangeTest : public GangsTest {
 protected:
  void SetUp() override {
    address_ = "";
    exchange_ = true;
    GangsTest::SetUp();
    Say(leader_, Started{1, 10});
  }

  FileEntry Upload(const std::string& bytes) {
    const FileEntry file{"", DigestOf(bytes), static_cast<std::int64_t>(bytes.size())};
    auto upload = artifacts_->BeginUpload(file.digest, file.size_bytes, 0);
    EXPECT_TRUE((*upload)->Append(bytes).ok());
    EXPECT_TRUE((*upload)->Finish().ok());
    return file;
  }
  ContributionInfo Of(int rank, std::int64_t round, int attempt = 1) {
    return {kJob, attempt, rank, round, Upload(absl::StrCat("round ", round, " of ", rank))};
  }
  void Contribute(const std::string& name, ContributionInfo contribution) {
    controller_->Contribute(machines_.at(name).session, std::move(contribution), [] {});
    Run();
  }
  // The coordinator is restarted, and the leader goes on as if nothing were.
  void RestartFor(absl::Duration duration) {
    ASSERT_TRUE(controller_->Load().ok());
    Connect(leader_, {{kJob, 1}});
    for (absl::Duration passed; passed < duration; passed += absl::Seconds(5)) {
      Pass(absl::Seconds(5));
      controller_->Heartbeat(machines_.at(leader_).session, {{kJob, 1}}, 0, [] {});
      Run();
    }
  }
  std::vector<ContributionInfo> Heard(const std::string& name) {
    return machines_.at(name).peer->All<ContributionInfo>();
  }
};

TEST_F(ExchangeTest, WorkersNobodyReaches_AreToldToExchange) {
  for (const std::string& name : {leader_, member_}) {
    EXPECT_TRUE(machines_.at(name).peer->All<AssignMessage>().back().exchange_artifacts);
  }
}

TEST_F(ExchangeTest, Contribution_IsToldToAllWorkersOfTheGangOnce) {
  const ContributionInfo first = Of(0, 1);
  Contribute(leader_, first);
  EXPECT_THAT(Heard(member_), ElementsAre(first));
  EXPECT_THAT(Heard(leader_), ElementsAre(first)) << "it is safe";
  Contribute(leader_, first);
  EXPECT_THAT(Heard(member_), SizeIs(1));
  EXPECT_THAT(Heard(leader_), SizeIs(2)) << "only who repeats it is told again";
}

TEST_F(ExchangeTest, WorkerWasAway_HearsTheNewestTwoRoundsOfEachRank) {
  const std::vector<ContributionInfo> of_leader = {Of(0, 1), Of(0, 2), Of(0, 3)};
  for (const ContributionInfo& contribution : of_leader) Contribute(leader_, contribution);
  const ContributionInfo of_member = Of(1, 2);
  Contribute(member_, of_member);
  Connect(member_, {{kJob, 1}});
  EXPECT_THAT(Heard(member_), ElementsAre(of_leader[1], of_leader[2], of_member));
  Contribute(leader_, of_leader[0]);
  EXPECT_THAT(Heard(member_), SizeIs(3)) << "nobody needs an old one";
}

TEST_F(ExchangeTest, CoordinatorRestarted_HearsItFromTheWorkersAgain) {
  const ContributionInfo first = Of(0, 1);
  Contribute(leader_, first);
  ASSERT_TRUE(controller_->Load().ok());
  Connect(member_, {{kJob, 1}});
  Connect(leader_, {{kJob, 1}});
  EXPECT_THAT(Heard(member_), IsEmpty());
  Contribute(leader_, first);
  EXPECT_THAT(Heard(member_), ElementsAre(first));
  EXPECT_EQ(Job().attempts.size(), 1u);
}

TEST_F(ExchangeTest, NewerRoundIsHeardFirst_TheOlderOneIsPassedOnToo) {
  const ContributionInfo first = Of(0, 1);
  const ContributionInfo second = Of(0, 2);
  Contribute(leader_, second);
  Contribute(leader_, first);
  EXPECT_THAT(Heard(member_), ElementsAre(second, first));
}

// The leader's ranks do not notice it.
TEST_F(ExchangeTest, MemberIsLostAndTheCoordinatorRestarted_TheGangEndsAfterALease) {
  Say(member_, Ended("RANK_LOST"));
  EXPECT_EQ(Job().state, JobState::kRunning) << "the leader is waited for";
  RestartFor(options_.lease);
  EXPECT_EQ(Job().state, JobState::kQueued);
  EXPECT_TRUE(WasFenced(leader_));
}

TEST_F(ExchangeTest, MemberHasFinishedAndTheCoordinatorIsRestarted_TheLeaderGoesOn) {
  Say(member_, Ended("FINISHED", false));
  RestartFor(2 * options_.lease);
  EXPECT_EQ(Job().state, JobState::kRunning);
  EXPECT_FALSE(WasFenced(leader_));
}

TEST_F(ExchangeTest, WhatIsNotTheWorkersOrNotThere_IsNotPassedOn) {
  Contribute(leader_, Of(1, 1));
  Contribute(leader_, Of(7, 1));
  Contribute(leader_, Of(-1, 1));
  Contribute(leader_, {kJob, 1, 0, 1, {"", DigestOf("never uploaded"), 14}});
  EXPECT_THAT(Heard(member_), IsEmpty());
  const ContributionInfo first = Of(0, 1);
  Contribute(leader_, first);
  ContributionInfo other = first;
  other.file = Upload("other bytes");
  Contribute(leader_, other);
  EXPECT_THAT(Heard(member_), ElementsAre(first)) << "others may have summed it";
}

TEST_F(ExchangeTest, StaleAttempt_IsFencedAndItsContributionsForgotten) {
  Contribute(leader_, Of(0, 1));
  Say(member_, Ended("TRAINER_KILLED"));
  Pass(absl::Seconds(2));
  ASSERT_EQ(Job().attempts.size(), 2u);
  machines_.at(leader_).peer->sent.clear();
  Contribute(leader_, Of(0, 2));
  EXPECT_TRUE(WasFenced(leader_));
  EXPECT_THAT(Heard(member_), SizeIs(1));
  Connect(member_, {{kJob, 2}});
  EXPECT_THAT(Heard(member_), IsEmpty());
}

class GrowingTest : public GangsTest {
 protected:
  void SetUp() override {
    least_ranks_ = 1;
    Connect("ant");
    StartGang();
    auto upload = artifacts_->BeginUpload(DigestOf("{}"), 2, 0);
    ASSERT_TRUE((*upload)->Append("{}").ok());
    ASSERT_TRUE((*upload)->Finish().ok());
    Say("ant", Started{1, 1000});
  }
  void Checkpoint(std::int64_t step) {
    Checkpointed event;
    event.checkpoint.step = step;
    event.checkpoint.files = {{"state.json", DigestOf("{}"), 2}};
    Say("ant", event);
  }
  void HoldFor(absl::Duration duration) {
    for (absl::Duration passed; passed < duration; passed += absl::Seconds(5)) {
      clock_.Advance(absl::Seconds(5));
      controller_->Heartbeat(machines_.at("ant").session, {{kJob, 1}}, 0, [] {});
      if (machines_.contains("bee")) {
        controller_->Heartbeat(machines_.at("bee").session, {}, 0, [] {});
      }
      Run();
    }
  }
};

TEST_F(GrowingTest, AnotherWorkerComes_TheGangGrowsAtACheckpoint) {
  ASSERT_EQ(Job().attempts.back().world_size(), 1);
  Connect("bee");
  Checkpoint(10);
  EXPECT_TRUE(machines_.at("ant").peer->All<StopMessage>().empty()) << "it has only begun";
  HoldFor(absl::Seconds(30));
  EXPECT_TRUE(machines_.at("ant").peer->All<StopMessage>().empty()) << "there is no checkpoint";
  Checkpoint(20);
  ASSERT_EQ(machines_.at("ant").peer->All<StopMessage>().size(), 1u);
  EXPECT_EQ(machines_.at("ant").peer->All<StopMessage>()[0].reason_code, "GROWING");
  EXPECT_TRUE(machines_.at("ant").peer->All<StopMessage>()[0].checkpoint);
  Say("ant", Ended("STOPPED"));
  ASSERT_EQ(Job().attempts.size(), 2u);
  EXPECT_EQ(Job().attempts.back().world_size(), 2);
  EXPECT_EQ(Job().failures, 0);
}

TEST_F(GrowingTest, NothingMoreToHave_TheGangIsLeftAlone) {
  HoldFor(absl::Seconds(30));
  Checkpoint(20);
  EXPECT_TRUE(machines_.at("ant").peer->All<StopMessage>().empty());
}

}  // namespace
}  // namespace offshoot
