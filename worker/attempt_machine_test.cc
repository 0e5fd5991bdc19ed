#include "worker/attempt_machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace offshoot::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

// Actions as words, so that a test reads as a story.
std::vector<std::string> Words(const AttemptActions& actions) {
  std::vector<std::string> words;
  for (const AttemptAction& action : actions) {
    if (std::holds_alternative<PrepareInputs>(action)) words.push_back("prepare");
    if (std::holds_alternative<LaunchTrainer>(action)) words.push_back("launch");
    if (std::holds_alternative<LaunchVerify>(action)) words.push_back("verify");
    if (const auto* upload = std::get_if<UploadCheckpoint>(&action)) {
      words.push_back("upload " + std::to_string(upload->step));
    }
    if (std::holds_alternative<UploadResult>(action)) words.push_back("upload result");
    if (const auto* emit = std::get_if<EmitEvent>(&action)) {
      const v1::AttemptEvent& event = emit->event;
      std::string what = "event " + std::to_string(event.sequence());
      if (event.has_ended()) what += " " + event.ended().reason_code();
      if (event.has_preflight()) what += " preflight " + event.preflight().reason_code();
      words.push_back(what);
    }
    if (const auto* control = std::get_if<SendControl>(&action)) words.push_back(control->line);
    if (std::holds_alternative<TerminateTrainer>(action)) words.push_back("terminate");
    if (std::holds_alternative<CancelTasks>(action)) words.push_back("cancel tasks");
    if (std::holds_alternative<Forget>(action)) words.push_back("forget");
    if (const auto* store = std::get_if<StoreContribution>(&action)) {
      words.push_back(absl::StrCat("store ", store->path, " of ", store->rank));
    }
    if (const auto* fetch = std::get_if<FetchContribution>(&action)) {
      words.push_back(absl::StrCat("fetch ", fetch->file.digest(), " of ", fetch->rank));
    }
    if (const auto* send = std::get_if<SendContribution>(&action)) {
      words.push_back(absl::StrCat("say round ", send->contribution.round(), " of ",
                                   send->contribution.rank()));
    }
  }
  return words;
}

v1::Assignment TrainAssignment() {
  v1::Assignment assignment;
  assignment.set_job_id("job-a");
  assignment.set_attempt(3);
  assignment.set_kind(v1::ASSIGNMENT_KIND_TRAIN);
  return assignment;
}

TrainerExit ExitWith(int code) {
  TrainerExit exit;
  exit.ranks = {ExitStatus{false, code}};
  if (code != 0 && code != 3) exit.first_failed_rank = 0;
  return exit;
}

v1::Checkpoint StoredCheckpoint(std::int64_t step) {
  v1::Checkpoint checkpoint;
  checkpoint.set_step(step);
  return checkpoint;
}

TrainerResult Trained() {
  TrainerResult result;
  result.path = "r";
  result.first_step = 1;
  result.last_step = 20;
  return result;
}

class AttemptMachineTest : public testing::Test {
 protected:
  std::vector<std::string> Feed(const AttemptInput& input) {
    return Words(machine_.OnInput(input, now_));
  }
  void Launch() {
    machine_.Start();
    Feed(InputsReady{});
    Feed(Launched{});
    Feed(TrainerSaid{0, TrainerStarted{1, 20}});
    machine_.OnEventAck(1, false, now_);
  }

  absl::Time now_ = kStart;
  AttemptMachine machine_{TrainAssignment(), AttemptLimits{}};
};

TEST_F(AttemptMachineTest, WholeLife_ToTheResult) {
  EXPECT_THAT(Words(machine_.Start()), ElementsAre("prepare"));
  EXPECT_THAT(Feed(InputsReady{}), ElementsAre("launch"));
  EXPECT_THAT(Feed(Launched{}), IsEmpty());
  EXPECT_THAT(Feed(TrainerSaid{0, TrainerStarted{1, 20}}), ElementsAre("event 1"));
  EXPECT_THAT(Feed(TrainerSaid{0, TrainerCheckpoint{10, "p"}}), ElementsAre("upload 10"));
  EXPECT_THAT(Feed(CheckpointUploaded{StoredCheckpoint(10)}), ElementsAre("event 2"));
  EXPECT_THAT(Words(machine_.OnEventAck(2, false, now_)),
              ElementsAre(R"({"command": "checkpoint_stored", "step": 10})"));
  EXPECT_THAT(Feed(TrainerSaid{0, Trained()}), IsEmpty());
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(0), CheckpointOnDisk{10, "p"}}),
              ElementsAre("event 3", "verify"));
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(0), {}}), ElementsAre("upload result"));
  EXPECT_THAT(Feed(ResultUploaded{}), ElementsAre("event 4"));
  EXPECT_TRUE(machine_.delivered());
  EXPECT_THAT(Words(machine_.OnEventAck(3, false, now_)), IsEmpty());
  EXPECT_THAT(Words(machine_.OnEventAck(4, false, now_)), ElementsAre("forget"));
}

TEST_F(AttemptMachineTest, TrainerDied_PendingCheckpointsComeBeforeTheEnd) {
  Launch();
  Feed(TrainerSaid{0, TrainerCheckpoint{10, "p"}});
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(1), CheckpointOnDisk{20, "q"}}), IsEmpty());
  EXPECT_THAT(Feed(CheckpointUploaded{StoredCheckpoint(10)}), ElementsAre("event 2", "upload 20"));
  EXPECT_THAT(Feed(CheckpointUploaded{StoredCheckpoint(20)}),
              ElementsAre("event 3", "event 4 TRAINER_ERROR"));
}

TEST_F(AttemptMachineTest, Cancel_WhilePreparing_EndsAtOnce) {
  machine_.Start();
  EXPECT_THAT(Words(machine_.OnStop(false, "CANCELLED", now_)),
              ElementsAre("cancel tasks", "event 1 STOPPED"));
  const TaskFailed given_up{AttemptTask::kPrepareInputs, absl::CancelledError("")};
  EXPECT_THAT(Feed(given_up), IsEmpty());
  EXPECT_THAT(Feed(InputsReady{}), IsEmpty()) << "came too late";
}

TEST_F(AttemptMachineTest, Cancel_WhileLaunching_EndsTheProcessThatCame) {
  machine_.Start();
  Feed(InputsReady{});
  EXPECT_THAT(Words(machine_.OnStop(false, "CANCELLED", now_)), ElementsAre("cancel tasks"));
  EXPECT_THAT(Feed(Launched{}), ElementsAre("terminate"));
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(1), {}}), ElementsAre("event 1 STOPPED"));
}

TEST_F(AttemptMachineTest, Cancel_WhileLaunching_LaunchDroppedEndsToo) {
  machine_.Start();
  Feed(InputsReady{});
  machine_.OnStop(false, "CANCELLED", now_);
  const TaskFailed given_up{AttemptTask::kLaunch, absl::CancelledError("")};
  EXPECT_THAT(Feed(given_up), ElementsAre("event 1 STOPPED"));
}

TEST_F(AttemptMachineTest, Stop_Repeated_IsSentOnceAndMayBecomeACancel) {
  Launch();
  EXPECT_THAT(Words(machine_.OnStop(true, "PAUSED", now_)),
              ElementsAre(R"({"command": "stop", "checkpoint": true})"));
  EXPECT_THAT(Words(machine_.OnStop(true, "PAUSED", now_)), IsEmpty());
  EXPECT_THAT(Words(machine_.OnStop(false, "CANCELLED", now_)),
              ElementsAre("cancel tasks", "terminate"));
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(3), CheckpointOnDisk{5, "p"}}),
              ElementsAre("event 2 STOPPED"))
      << "a cancelled job needs no checkpoint";
}

TEST_F(AttemptMachineTest, Stop_NotObeyedInTime_EndsTheTrainer) {
  Launch();
  machine_.OnStop(true, "PAUSED", now_);
  now_ = machine_.deadline();
  ASSERT_LT(now_, absl::InfiniteFuture());
  EXPECT_THAT(Words(machine_.OnTick(now_)), ElementsAre("terminate"));
  EXPECT_EQ(machine_.deadline(), absl::InfiniteFuture());
}

TEST_F(AttemptMachineTest, Stop_WhileVerifying_LetsItFinish) {
  Launch();
  Feed(TrainerSaid{0, Trained()});
  Feed(TrainerEnded{ExitWith(0), {}});
  Feed(Launched{});
  EXPECT_THAT(Words(machine_.OnStop(true, "PREEMPTED", now_)), IsEmpty());
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(0), {}}), ElementsAre("upload result"));
}

TEST_F(AttemptMachineTest, Fenced_NothingMoreIsSaid) {
  Launch();
  Feed(TrainerSaid{0, TrainerCheckpoint{10, "p"}});
  EXPECT_THAT(Words(machine_.OnEventAck(1, true, now_)), ElementsAre("cancel tasks", "terminate"));
  EXPECT_THAT(Feed(TrainerSaid{0, TrainerCheckpoint{20, "q"}}), IsEmpty());
  EXPECT_THAT(Feed(CheckpointUploaded{StoredCheckpoint(10)}), IsEmpty());
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(1), CheckpointOnDisk{20, "q"}}),
              ElementsAre("cancel tasks", "forget"));
}

TEST_F(AttemptMachineTest, CheckpointUpload_FailedForGood_EndsTheAttempt) {
  Launch();
  Feed(TrainerSaid{0, TrainerCheckpoint{10, "p"}});
  const TaskFailed full{AttemptTask::kUploadCheckpoint, absl::ResourceExhaustedError("full")};
  EXPECT_THAT(Feed(full), ElementsAre("terminate"));
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(1), {}}), ElementsAre("event 2 DISK_FULL"));
}

TEST_F(AttemptMachineTest, Checkpoints_FloodOfALyingTrainer_StaysBounded) {
  Launch();
  for (int step = 1; step <= 1000; ++step) {
    Feed(TrainerSaid{0, TrainerCheckpoint{step, "p" + std::to_string(step)}});
  }
  int uploads = 1;
  std::int64_t newest = 1;
  while (true) {
    const AttemptActions actions =
        machine_.OnInput(CheckpointUploaded{StoredCheckpoint(newest)}, now_);
    const auto* upload = std::get_if<UploadCheckpoint>(&actions.back());
    if (upload == nullptr) break;
    newest = upload->step;
    ++uploads;
  }
  EXPECT_LE(uploads, 20);
  EXPECT_EQ(newest, 1000);
}

TEST_F(AttemptMachineTest, Started_Twice_IsToldOnce) {
  Launch();
  EXPECT_THAT(Feed(TrainerSaid{0, TrainerStarted{1, 20}}), IsEmpty());
}

TEST_F(AttemptMachineTest, FailedEvent_OfRank1_NamesIt) {
  Launch();
  Feed(TrainerSaid{1, TrainerFailed{"NAN_LOSS", "the loss of step 5 is NaN", 5}});
  TrainerExit exit;
  exit.ranks = {ExitStatus{true, 15}, ExitStatus{false, 4}};
  exit.first_failed_rank = 1;
  const AttemptActions actions = machine_.OnInput(TrainerEnded{exit, {}}, now_);
  ASSERT_EQ(Words(actions), std::vector<std::string>{"event 2 NAN_LOSS"});
  EXPECT_THAT(std::get<EmitEvent>(actions[0]).event.ended().message(), HasSubstr("rank 1"));
}

TEST_F(AttemptMachineTest, OutOfMemoryKill_IsToldApartAndNotRetried) {
  Launch();
  TrainerExit exit;
  exit.ranks = {ExitStatus{true, 9}};
  exit.first_failed_rank = 0;
  exit.out_of_memory_killed = true;
  const AttemptActions actions = machine_.OnInput(TrainerEnded{exit, {}}, now_);
  const v1::AttemptEnded& ended = std::get<EmitEvent>(actions.back()).event.ended();
  EXPECT_EQ(ended.reason_code(), "OUT_OF_MEMORY");
  EXPECT_FALSE(ended.retryable());
}

TEST_F(AttemptMachineTest, Recover_WithCheckpointAndUnackedEvents_DeliversBothThenEnds) {
  RecoveredAttempt recovered;
  recovered.assignment = TrainAssignment();
  v1::AttemptEvent started;
  started.set_sequence(1);
  started.mutable_started()->set_first_step(11);
  v1::AttemptEvent checkpointed;
  checkpointed.set_sequence(2);
  checkpointed.mutable_checkpointed()->mutable_checkpoint()->set_step(20);
  recovered.events = {started, checkpointed};
  recovered.acknowledged_sequence = 1;
  recovered.newest_checkpoint = CheckpointOnDisk{30, "p"};
  recovered.last_step = 34;
  EXPECT_THAT(Words(machine_.Recover(recovered, now_)), ElementsAre("upload 30"));
  EXPECT_EQ(machine_.Held().next_event_sequence(), 2);
  const AttemptActions actions = machine_.OnInput(CheckpointUploaded{StoredCheckpoint(30)}, now_);
  ASSERT_THAT(Words(actions), ElementsAre("event 3", "event 4 WORKER_RESTARTED"));
  const v1::AttemptEnded& ended = std::get<EmitEvent>(actions[1]).event.ended();
  EXPECT_EQ(ended.first_step(), 11);
  EXPECT_EQ(ended.last_step(), 34);
}

TEST_F(AttemptMachineTest, Recover_AlreadyEndedAndAcknowledged_IsForgotten) {
  RecoveredAttempt recovered;
  recovered.assignment = TrainAssignment();
  v1::AttemptEvent ended;
  ended.set_sequence(1);
  ended.mutable_ended()->set_reason_code("STOPPED");
  recovered.events = {ended};
  recovered.acknowledged_sequence = 1;
  EXPECT_THAT(Words(machine_.Recover(recovered, now_)), ElementsAre("forget"));
}

TEST_F(AttemptMachineTest, Recover_Preflight_IsTriedAgainElsewhere) {
  v1::Assignment assignment = TrainAssignment();
  assignment.set_kind(v1::ASSIGNMENT_KIND_PREFLIGHT);
  assignment.set_attempt(0);
  AttemptMachine machine(assignment, AttemptLimits{});
  RecoveredAttempt recovered;
  recovered.assignment = assignment;
  const AttemptActions actions = machine.Recover(recovered, now_);
  ASSERT_THAT(Words(actions), ElementsAre("event 1 preflight WORKER_RESTARTED"));
  EXPECT_TRUE(std::get<EmitEvent>(actions[0]).event.preflight().retryable());
}

// --- gangs over several workers ---

v1::Assignment PartOfGang(int first_rank) {
  v1::Assignment assignment = TrainAssignment();
  assignment.add_device_ids("cpu:0");
  assignment.set_first_rank(first_rank);
  assignment.set_world_size(2);
  return assignment;
}

TEST(GangTest, WorkerThatDoesNotLead_LaunchesWhenItKnowsWhereRank0Listens) {
  AttemptMachine machine(PartOfGang(1), AttemptLimits{});
  machine.Start();
  EXPECT_THAT(Words(machine.OnInput(InputsReady{}, kStart)), IsEmpty());
  const AttemptActions actions = machine.OnMeetAt({"10.0.0.7", 4711});
  ASSERT_EQ(actions.size(), 1u);
  const auto& launch = std::get<LaunchTrainer>(actions[0]);
  ASSERT_TRUE(launch.meet_at.has_value());
  EXPECT_EQ(launch.meet_at->address, "10.0.0.7");
  EXPECT_EQ(launch.meet_at->port, 4711);
  EXPECT_THAT(machine.OnMeetAt({"10.0.0.7", 4711}), IsEmpty());  // said again
}

TEST(GangTest, PlaceKnownBeforeTheInputs_LaunchesOnce) {
  AttemptMachine machine(PartOfGang(1), AttemptLimits{});
  machine.Start();
  EXPECT_THAT(machine.OnMeetAt({"10.0.0.7", 4711}), IsEmpty());
  EXPECT_THAT(Words(machine.OnInput(InputsReady{}, kStart)), ElementsAre("launch"));
}

TEST(GangTest, Leader_TellsWhereItListens) {
  AttemptMachine machine(PartOfGang(0), AttemptLimits{});
  machine.Start();
  EXPECT_THAT(Words(machine.OnInput(InputsReady{}, kStart)), ElementsAre("launch"));
  machine.OnInput(Launched{}, kStart);
  EXPECT_THAT(Words(machine.OnInput(Listening{{"10.0.0.7", 4711}}, kStart)),
              ElementsAre("event 1"));
  EXPECT_EQ(machine.unacknowledged().back().listening().port(), 4711);
}

TEST(GangTest, WorkerThatDoesNotLead_SaysOnlyThatItFinished) {
  AttemptMachine machine(PartOfGang(1), AttemptLimits{});
  machine.Start();
  machine.OnInput(InputsReady{}, kStart);
  machine.OnMeetAt({"10.0.0.7", 4711});
  machine.OnInput(Launched{}, kStart);
  EXPECT_THAT(machine.OnInput(TrainerSaid{0, TrainerStarted{1, 20}}, kStart), IsEmpty());
  EXPECT_THAT(Words(machine.OnInput(TrainerEnded{ExitWith(0), {}}, kStart)),
              ElementsAre("event 1 FINISHED"));
}

TEST(GangTest, StoppedByAnotherWorkersRanks_SaysThatTheGangWasLost) {
  AttemptMachine machine(PartOfGang(0), AttemptLimits{});
  machine.Start();
  machine.OnInput(InputsReady{}, kStart);
  machine.OnInput(Launched{}, kStart);
  EXPECT_THAT(Words(machine.OnInput(TrainerEnded{ExitWith(3), {}}, kStart)),
              ElementsAre("event 1 RANK_LOST"));
}

TEST(GangTest, RankKilledAndAnotherLostIt_TheKilledOneIsNamed) {
  TrainerExit exit;
  exit.ranks = {ExitStatus{false, 4}, ExitStatus{true, 9}};
  exit.first_failed_rank = 0;
  const AttemptEnd end = ExplainExit(
      exit, TrainerFailed{kRankLost, "rank 0 of 4 lost the others", 7}, /*failed_rank=*/0,
      /*first_rank=*/2);
  EXPECT_EQ(end.reason_code, "TRAINER_KILLED");
  EXPECT_THAT(end.message, HasSubstr("rank 3"));
}

// --- ranks that hang ---

TrainerSaid Says(int rank, TrainerActivity::Waiting waiting, double seconds) {
  TrainerActivity activity;
  activity.step = 12;
  activity.doing = "computing micro-batch 3 of 8";
  activity.waiting = waiting;
  activity.seconds = seconds;
  return TrainerSaid{rank, activity};
}

class HungRankTest : public testing::Test {
 protected:
  using Waiting = TrainerActivity::Waiting;
  HungRankTest() {
    machine_.Start();
    machine_.OnInput(InputsReady{}, kStart);
    machine_.OnInput(Launched{}, kStart);
  }
  std::string EndAt(absl::Time now) {
    if (now < machine_.deadline()) return "";
    if (machine_.OnTick(now).empty()) return "";
    TrainerExit exit = ExitWith(0);
    exit.terminated = true;
    exit.ranks = {ExitStatus{true, 9}, ExitStatus{true, 9}};
    machine_.OnInput(TrainerEnded{exit, {}}, now);
    const v1::AttemptEnded& ended = machine_.unacknowledged().back().ended();
    return ended.reason_code() + ": " + ended.message();
  }
  static v1::Assignment OfTwoRanks() {
    v1::Assignment assignment = TrainAssignment();
    assignment.clear_device_ids();
    assignment.add_device_ids("cpu:0");
    assignment.add_device_ids("cpu:1");
    return assignment;
  }
  AttemptMachine machine_{OfTwoRanks(), AttemptLimits{}};
};

TEST_F(HungRankTest, StuckRank_IsNamedAndTheWaitingOneIsNot) {
  machine_.OnInput(Says(0, Waiting::kForRanks, 700), kStart);
  machine_.OnInput(Says(1, Waiting::kForNothing, 500), kStart);
  EXPECT_EQ(EndAt(kStart + absl::Seconds(99)), "");
  EXPECT_THAT(EndAt(kStart + absl::Seconds(100)),
              ::testing::AllOf(HasSubstr("RANK_HUNG"), HasSubstr("rank 1 in step 12: computing")));
}

TEST_F(HungRankTest, SilentRank_IsNamed) {
  machine_.OnInput(Says(0, Waiting::kForRanks, 1), kStart + absl::Minutes(9));
  machine_.OnInput(Says(1, Waiting::kForRanks, 1), kStart);
  EXPECT_EQ(EndAt(kStart + absl::Minutes(9) + absl::Seconds(59)), "");
  EXPECT_THAT(EndAt(kStart + absl::Minutes(10)), HasSubstr("rank 1"));
}

TEST_F(HungRankTest, WaitingForTheWorkerOrDone_IsNoHang) {
  machine_.OnInput(Says(0, Waiting::kForWorker, 5000), kStart);
  machine_.OnInput(Says(1, Waiting::kOver, 0), kStart);
  EXPECT_EQ(EndAt(kStart + absl::Minutes(9)), "");
}

TEST_F(HungRankTest, RankThatNeverBegins_IsNamed) {
  machine_.OnInput(Says(0, Waiting::kForWorker, 1), kStart + absl::Minutes(29));
  EXPECT_EQ(EndAt(kStart + absl::Minutes(30) - absl::Seconds(1)), "");
  EXPECT_THAT(EndAt(kStart + absl::Minutes(30)),
              ::testing::AllOf(HasSubstr("RANK_HUNG"), HasSubstr("rank 1 had not begun")));
}

TEST_F(HungRankTest, EverybodyWaits_TheLinkIsSuspected) {
  machine_.OnInput(Says(0, Waiting::kForRanks, 1190), kStart);
  machine_.OnInput(Says(1, Waiting::kForRanks, 1190), kStart);
  EXPECT_THAT(EndAt(kStart + absl::Seconds(10)), HasSubstr("RANK_LOST"));
}

TEST(PreflightTest, TakesTooLong_IsEndedAndTriedAgain) {
  v1::Assignment assignment = TrainAssignment();
  assignment.set_kind(v1::ASSIGNMENT_KIND_PREFLIGHT);
  assignment.set_attempt(0);
  AttemptMachine machine(assignment, AttemptLimits{});
  machine.Start();
  machine.OnInput(InputsReady{}, kStart);
  machine.OnInput(Launched{}, kStart);
  EXPECT_EQ(machine.deadline(), kStart + absl::Minutes(30));
  EXPECT_THAT(Words(machine.OnTick(kStart + absl::Minutes(30))), ElementsAre("terminate"));
  TrainerExit exit = ExitWith(0);
  exit.terminated = true;
  const AttemptActions actions = machine.OnInput(TrainerEnded{exit, {}}, kStart);
  ASSERT_THAT(Words(actions), ElementsAre("event 1 preflight PREFLIGHT_HUNG"));
  EXPECT_TRUE(std::get<EmitEvent>(actions[0]).event.preflight().retryable());
}

// Ranks 2 and 3 of a gang of 5 that exchange artifacts.
class ExchangeTest : public testing::Test {
 protected:
  static v1::Assignment Part() {
    v1::Assignment assignment = TrainAssignment();
    assignment.add_device_ids("cpu:0");
    assignment.add_device_ids("cpu:1");
    assignment.set_first_rank(2);
    assignment.set_world_size(5);
    assignment.set_exchange_artifacts(true);
    return assignment;
  }
  std::vector<std::string> Feed(const AttemptInput& input) {
    return Words(machine_.OnInput(input, kStart));
  }
  std::vector<std::string> Hear(int rank, std::int64_t round, const std::string& digest = "d") {
    v1::Contribution contribution;
    contribution.set_rank(rank);
    contribution.set_round(round);
    contribution.mutable_file()->set_digest(digest);
    return Words(machine_.OnContribution(contribution));
  }
  void Launch() {
    machine_.Start();
    EXPECT_THAT(Feed(InputsReady{}), ElementsAre("launch")) << "it waits for no meeting place";
    Feed(Launched{});
  }
  static std::string Line(int rank, std::int64_t round, const std::string& path) {
    return absl::StrCat(R"({"command":"contribution","path":")", path, R"(","rank":)", rank,
                        R"(,"round":)", round, "}");
  }

  AttemptMachine machine_{Part(), AttemptLimits{}};
};

TEST_F(ExchangeTest, OwnContribution_IsStoredSaidAndConfirmedToTheRanks) {
  Launch();
  EXPECT_THAT(Feed(TrainerSaid{1, TrainerContribution{1, "/own"}}), ElementsAre("store /own of 3"));
  EXPECT_THAT(Hear(3, 1), IsEmpty()) << "it has not been said yet";
  EXPECT_THAT(Feed(ContributionStored{3, 1, {}, "/own"}), ElementsAre("say round 1 of 3"));
  EXPECT_THAT(Hear(3, 1), ElementsAre(Line(3, 1, "/own")));
}

TEST_F(ExchangeTest, ContributionOfAnotherWorker_IsFetchedOnceAndHandedOver) {
  Launch();
  EXPECT_THAT(Hear(0, 1, "d0"), ElementsAre("fetch d0 of 0"));
  EXPECT_THAT(Hear(0, 1, "d0"), IsEmpty());
  EXPECT_THAT(Feed(ContributionFetched{0, 1, "/f"}), ElementsAre(Line(0, 1, "/f")));
  EXPECT_THAT(Hear(5, 1), IsEmpty()) << "no such rank";
  EXPECT_THAT(Hear(-1, 1), IsEmpty());
}

TEST_F(ExchangeTest, ContributionsBeforeTheLaunch_AreHandedOverAfterIt) {
  machine_.Start();
  Hear(0, 1);
  Feed(InputsReady{});
  EXPECT_THAT(Feed(ContributionFetched{0, 1, "/f"}), IsEmpty());
  EXPECT_THAT(Feed(Launched{}), ElementsAre(Line(0, 1, "/f")));
}

TEST_F(ExchangeTest, NewestTwoRounds_AreSaidAgainAfterAReconnection) {
  Launch();
  for (std::int64_t round = 1; round <= 4; ++round) {
    Feed(ContributionStored{2, round, {}, "/own"});
    Feed(ContributionStored{3, round, {}, "/own"});
  }
  std::vector<std::string> said;
  for (const v1::Contribution& contribution : machine_.contributions()) {
    said.push_back(absl::StrCat(contribution.job_id(), " ", contribution.attempt(), " rank ",
                                contribution.rank(), " round ", contribution.round()));
  }
  EXPECT_THAT(said, ElementsAre("job-a 3 rank 2 round 3", "job-a 3 rank 2 round 4",
                                "job-a 3 rank 3 round 3", "job-a 3 rank 3 round 4"));
}

TEST_F(ExchangeTest, ExchangeFailsForGood_EndsTheAttempt) {
  Launch();
  const TaskFailed gone{AttemptTask::kExchange, absl::NotFoundError("nobody has it")};
  EXPECT_THAT(Feed(gone), ElementsAre("terminate"));
  EXPECT_THAT(Feed(TrainerEnded{ExitWith(4), {}}), ElementsAre("event 1 INPUT_MISSING"));
}

TEST_F(ExchangeTest, Fenced_NothingIsSaidAgain) {
  Launch();
  Feed(ContributionStored{2, 1, {}, "/own"});
  machine_.OnStop(false, "FENCED", kStart);
  EXPECT_THAT(machine_.contributions(), IsEmpty());
  EXPECT_THAT(Hear(2, 1), IsEmpty());
  EXPECT_THAT(Feed(ContributionStored{2, 2, {}, "/own"}), IsEmpty());
}

TEST_F(AttemptMachineTest, ContributionWithoutAnExchange_IsIgnored) {
  Launch();
  EXPECT_THAT(Feed(TrainerSaid{0, TrainerContribution{1, "/own"}}), IsEmpty());
}

}  // namespace
}  // namespace offshoot::worker
