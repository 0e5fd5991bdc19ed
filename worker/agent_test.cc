#include "worker/agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace offshoot::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const absl::Time kNow = absl::FromUnixSeconds(1'700'000'000);

std::string WordOf(const v1::WorkerMessage& message) {
  if (message.has_register_()) {
    return "register holding " + std::to_string(message.register_().held_attempts_size());
  }
  if (message.has_heartbeat()) {
    return "heartbeat holding " + std::to_string(message.heartbeat().held_attempts_size());
  }
  if (message.has_attempt_event()) {
    return "event " + std::to_string(message.attempt_event().sequence());
  }
  if (message.has_contribution()) {
    return "contribution to round " + std::to_string(message.contribution().round());
  }
  return "output " + message.attempt_output().log();
}

std::vector<std::string> Words(const AgentEffects& effects) {
  std::vector<std::string> words;
  for (const AgentEffect& effect : effects) {
    if (std::holds_alternative<Connect>(effect)) words.push_back("connect");
    if (std::holds_alternative<Disconnect>(effect)) words.push_back("disconnect");
    if (const auto* send = std::get_if<SendMessage>(&effect)) {
      words.push_back(WordOf(send->message));
    }
    if (std::holds_alternative<BeginAttempt>(effect)) words.push_back("begin");
    if (const auto* persist = std::get_if<PersistEvent>(&effect)) {
      words.push_back("persist " + std::to_string(persist->event.sequence()));
    }
    if (std::holds_alternative<RecordAck>(effect)) words.push_back("record ack");
    if (const auto* run = std::get_if<RunAction>(&effect)) {
      if (const auto* control = std::get_if<SendControl>(&run->action)) {
        words.push_back(control->line);
      } else {
        words.push_back("run " + std::to_string(run->action.index()));
      }
    }
    if (std::holds_alternative<ForgetAttempt>(effect)) words.push_back("forget");
    if (std::holds_alternative<LeaveNow>(effect)) words.push_back("leave");
  }
  return words;
}

class AgentTest : public testing::Test {
 protected:
  static AgentOptions Options() {
    AgentOptions options;
    options.worker_id = "wrk-a";
    options.heartbeat_interval = absl::Seconds(5);
    options.unreachable_grace = absl::Minutes(10);
    options.max_buffered_output_bytes = 1000;
    options.inventory.add_devices()->set_device_id("cpu:0");
    return options;
  }

  void Welcome() {
    v1::CoordinatorMessage message;
    message.mutable_welcome()->set_heartbeat_interval_ms(1000);
    message.mutable_welcome()->set_unreachable_grace_ms(60'000);
    welcomed_ = Words(agent_.OnMessage(message, now_));
  }

  void Connected() {
    agent_.Start({}, now_);
    Welcome();
  }

  std::vector<std::string> Assign(int attempt = 1) {
    v1::CoordinatorMessage message;
    message.mutable_assignment()->set_job_id("job-a");
    message.mutable_assignment()->set_attempt(attempt);
    message.mutable_assignment()->set_kind(v1::ASSIGNMENT_KIND_TRAIN);
    return Words(agent_.OnMessage(message, now_));
  }

  void Train() {
    Assign();
    agent_.OnAttempt(key_, InputsReady{}, now_);
    agent_.OnAttempt(key_, Launched{}, now_);
  }

  std::vector<std::string> Ack(std::int64_t sequence) {
    v1::CoordinatorMessage message;
    message.mutable_event_ack()->set_job_id("job-a");
    message.mutable_event_ack()->set_attempt(1);
    message.mutable_event_ack()->set_sequence(sequence);
    return Words(agent_.OnMessage(message, now_));
  }

  // Of a gang of two whose ranks exchange artifacts.
  void TrainRank(int rank) {
    v1::CoordinatorMessage message;
    v1::Assignment& assignment = *message.mutable_assignment();
    assignment.set_job_id("job-a");
    assignment.set_attempt(1);
    assignment.set_kind(v1::ASSIGNMENT_KIND_TRAIN);
    assignment.add_device_ids("cpu:0");
    assignment.set_first_rank(rank);
    assignment.set_world_size(2);
    assignment.set_exchange_artifacts(true);
    agent_.OnMessage(message, now_);
    agent_.OnAttempt(key_, InputsReady{}, now_);
    agent_.OnAttempt(key_, Launched{}, now_);
  }

  std::vector<std::string> TickAtDeadline() {
    now_ = agent_.deadline();
    return Words(agent_.OnTick(now_));
  }

  absl::Time now_ = kNow;
  Agent agent_{Options(), [] { return 0.5; }};
  const AttemptKey key_{JobId("job-a"), AttemptNumber{1}};
  std::vector<std::string> welcomed_;
};

TEST_F(AgentTest, Start_ConnectsAndRegisters) {
  EXPECT_THAT(Words(agent_.Start({}, now_)), ElementsAre("connect", "register holding 0"));
}

TEST_F(AgentTest, Heartbeats_ComeAtTheIntervalOfTheWelcome) {
  Connected();
  EXPECT_EQ(agent_.deadline(), now_ + absl::Seconds(1));
  EXPECT_THAT(TickAtDeadline(), ElementsAre("heartbeat holding 0"));
  EXPECT_EQ(agent_.deadline(), now_ + absl::Seconds(1));
}

TEST_F(AgentTest, MeasuredSpeed_IsToldWithTheNextHeartbeatOnly) {
  Connected();
  agent_.SetDeviceSpeed("cpu:0", 1.5);
  const auto speeds = [](const AgentEffects& effects) {
    return std::get<SendMessage>(effects.at(0)).message.heartbeat().device_speeds_size();
  };
  now_ = agent_.deadline();
  EXPECT_EQ(speeds(agent_.OnTick(now_)), 1);
  now_ = agent_.deadline();
  EXPECT_EQ(speeds(agent_.OnTick(now_)), 0);
}

TEST_F(AgentTest, Reconnect_WaitsLongerEachTimeAndNeverWithoutBound) {
  agent_.Start({}, now_);
  absl::Duration longest;
  for (int round = 0; round < 20; ++round) {
    EXPECT_THAT(Words(agent_.OnDisconnected(absl::UnavailableError("gone"), now_)), IsEmpty());
    const absl::Time before = now_;
    EXPECT_THAT(TickAtDeadline(), ElementsAre("connect", "register holding 0"));
    longest = std::max(longest, now_ - before);
  }
  EXPECT_GT(longest, absl::Seconds(1));
  EXPECT_LE(longest, absl::Seconds(5));
}

bool Launches(const AgentEffects& effects, const AttemptKey& key) {
  return std::any_of(effects.begin(), effects.end(), [&](const AgentEffect& effect) {
    const auto* run = std::get_if<RunAction>(&effect);
    return run != nullptr && run->key == key && std::holds_alternative<LaunchTrainer>(run->action);
  });
}

class AgentDevicesTest : public AgentTest {
 protected:
  AttemptKey Assign(const std::string& job_id, const std::string& device) {
    v1::CoordinatorMessage message;
    message.mutable_assignment()->set_job_id(job_id);
    message.mutable_assignment()->set_attempt(1);
    message.mutable_assignment()->set_kind(v1::ASSIGNMENT_KIND_TRAIN);
    message.mutable_assignment()->set_world_size(1);
    message.mutable_assignment()->add_device_ids(device);
    agent_.OnMessage(message, now_);
    return {JobId(job_id), AttemptNumber{1}};
  }
  void Fence(const AttemptKey& key) {
    v1::CoordinatorMessage message;
    message.mutable_stop_attempt()->set_job_id(key.job_id.value());
    message.mutable_stop_attempt()->set_attempt(1);
    message.mutable_stop_attempt()->set_reason_code("FENCED");
    agent_.OnMessage(message, now_);
  }
};

TEST_F(AgentDevicesTest, TrainerOnADeviceWhereAnotherIsEnding_WaitsForItsEnd) {
  Connected();
  const AttemptKey old = Assign("job-old", "cpu:0");
  EXPECT_TRUE(Launches(agent_.OnAttempt(old, InputsReady{}, now_), old));
  agent_.OnAttempt(old, Launched{}, now_);
  Fence(old);
  const AttemptKey next = Assign("job-next", "cpu:0");
  EXPECT_FALSE(Launches(agent_.OnAttempt(next, InputsReady{}, now_), next));
  const AttemptKey other = Assign("job-other", "cpu:1");
  EXPECT_TRUE(Launches(agent_.OnAttempt(other, InputsReady{}, now_), other));
  EXPECT_TRUE(Launches(agent_.OnAttempt(old, TrainerEnded{}, now_), next));
}

TEST_F(AgentDevicesTest, StoppedWhileItsDeviceIsTaken_EndsWithoutATrainer) {
  Connected();
  const AttemptKey old = Assign("job-old", "cpu:0");
  agent_.OnAttempt(old, InputsReady{}, now_);
  agent_.OnAttempt(old, Launched{}, now_);
  const AttemptKey next = Assign("job-next", "cpu:0");
  agent_.OnAttempt(next, InputsReady{}, now_);
  Fence(next);
  EXPECT_FALSE(agent_.Holds(next));
  EXPECT_FALSE(Launches(agent_.OnAttempt(old, TrainerEnded{}, now_), next));
}

TEST_F(AgentTest, Welcome_NotComing_GivesTheSessionUp) {
  agent_.Start({}, now_);
  EXPECT_THAT(TickAtDeadline(), ElementsAre("disconnect"));
}

TEST_F(AgentTest, Assignment_Repeated_StartsOnce) {
  Connected();
  EXPECT_THAT(Assign(), ElementsAre("begin", "run 0"));
  EXPECT_THAT(Assign(), IsEmpty());
  EXPECT_EQ(agent_.held(), 1u);
}

TEST_F(AgentTest, Assignment_WithAnIdThatIsNoName_IsIgnored) {
  Connected();
  v1::CoordinatorMessage message;
  message.mutable_assignment()->set_job_id("../../etc");
  message.mutable_assignment()->set_kind(v1::ASSIGNMENT_KIND_TRAIN);
  EXPECT_THAT(Words(agent_.OnMessage(message, now_)), IsEmpty());
  EXPECT_EQ(agent_.held(), 0u);
}

TEST_F(AgentTest, Event_IsDurableBeforeItIsSent) {
  Connected();
  Train();
  EXPECT_THAT(Words(agent_.OnAttempt(key_, TrainerSaid{0, TrainerStarted{1, 20}}, now_)),
              ElementsAre("persist 1", "event 1"));
}

TEST_F(AgentTest, Events_WhileAway_AreSentAfterTheWelcomeInOrder) {
  Connected();
  Train();
  agent_.OnDisconnected(absl::UnavailableError("gone"), now_);
  EXPECT_THAT(Words(agent_.OnAttempt(key_, TrainerSaid{0, TrainerStarted{1, 20}}, now_)),
              ElementsAre("persist 1"));
  agent_.OnAttempt(key_, TrainerSaid{0, TrainerCheckpoint{10, "p"}}, now_);
  v1::Checkpoint checkpoint;
  checkpoint.set_step(10);
  EXPECT_THAT(Words(agent_.OnAttempt(key_, CheckpointUploaded{checkpoint}, now_)),
              ElementsAre("persist 2"));
  EXPECT_THAT(TickAtDeadline(), ElementsAre("connect", "register holding 1"));
  Welcome();
  EXPECT_THAT(welcomed_, ElementsAre("event 1", "event 2"));
  EXPECT_THAT(Ack(1), ElementsAre("record ack"));
  EXPECT_THAT(Ack(2), ElementsAre("record ack", R"({"command": "checkpoint_stored", "step": 10})"));
}

TEST_F(AgentTest, Output_WhileAway_KeepsTheNewestWithinItsBound) {
  Connected();
  Train();
  agent_.OnDisconnected(absl::UnavailableError("gone"), now_);
  for (int i = 0; i < 100; ++i) {
    agent_.OnLog(key_, i * 100, std::string(100, static_cast<char>('0' + i % 10)), now_);
  }
  TickAtDeadline();
  Welcome();
  ASSERT_GE(welcomed_.size(), 3u);
  ASSERT_LE(welcomed_.size(), 10u);
  EXPECT_EQ(welcomed_.back(), "output " + std::string(100, '9'));
}

TEST_F(AgentTest, Coordinator_AwayForLongerThanGrace_StopsWithACheckpoint) {
  Connected();
  Train();
  agent_.OnDisconnected(absl::UnavailableError("gone"), now_);
  now_ += absl::Seconds(59);
  for (const std::string& word : Words(agent_.OnTick(now_))) EXPECT_NE(word[0], '{') << word;
  now_ += absl::Seconds(1);
  EXPECT_THAT(Words(agent_.OnTick(now_)),
              testing::Contains(R"({"command": "stop", "checkpoint": true})"));
}

TEST_F(AgentTest, Coordinator_BackInTime_NothingIsStopped) {
  Connected();
  Train();
  agent_.OnDisconnected(absl::UnavailableError("gone"), now_);
  TickAtDeadline();
  Welcome();
  now_ += absl::Minutes(30);
  for (const std::string& word : Words(agent_.OnTick(now_))) EXPECT_NE(word[0], '{') << word;
}

TEST_F(AgentTest, Coordinator_NeverThereSinceTheStart_IsWaitedForPatiently) {
  agent_.Start({}, now_);
  for (int round = 0; round < 1000; ++round) {
    for (const std::string& word :
         Words(agent_.OnDisconnected(absl::UnavailableError("gone"), now_))) {
      EXPECT_NE(word, "leave");
    }
    TickAtDeadline();
  }
}

TEST_F(AgentTest, Refusal_ThatLasts_EndsAWorkerWithoutAttempts) {
  agent_.Start({}, now_);
  EXPECT_THAT(Words(agent_.OnDisconnected(absl::FailedPreconditionError("version"), now_)),
              ElementsAre("leave"));
}

TEST_F(AgentTest, Refusal_WhileAttemptsAreHeld_IsTriedAgain) {
  Connected();
  Train();
  EXPECT_THAT(Words(agent_.OnDisconnected(absl::FailedPreconditionError("version"), now_)),
              IsEmpty());
  EXPECT_THAT(TickAtDeadline(), ElementsAre("connect", "register holding 1"));
}

TEST_F(AgentTest, Leave_WithNothingRunning_LeavesAtOnceAndRefusesWork) {
  Connected();
  EXPECT_THAT(Words(agent_.Leave(now_)), ElementsAre("leave"));
}

TEST_F(AgentTest, Contribution_IsSaidAgainAfterEachWelcome) {
  Connected();
  TrainRank(0);
  const ContributionStored stored{0, 1, {}, "/own"};
  EXPECT_THAT(Words(agent_.OnAttempt(key_, stored, now_)), ElementsAre("contribution to round 1"));
  agent_.OnDisconnected(absl::UnavailableError("gone"), now_);
  const ContributionStored later{0, 2, {}, "/own"};
  EXPECT_THAT(Words(agent_.OnAttempt(key_, later, now_)), IsEmpty());
  TickAtDeadline();
  Welcome();
  EXPECT_THAT(welcomed_, ElementsAre("contribution to round 1", "contribution to round 2"));
  v1::CoordinatorMessage confirmed;
  confirmed.mutable_contribution()->set_job_id("job-a");
  confirmed.mutable_contribution()->set_attempt(1);
  confirmed.mutable_contribution()->set_round(2);
  EXPECT_THAT(Words(agent_.OnMessage(confirmed, now_)),
              ElementsAre(R"({"command":"contribution","path":"/own","rank":0,"round":2})"));
}

// Of a worker that has ended its part the coordinator passes nothing on.
TEST_F(AgentTest, ContributionOfTheLastRound_IsSaidAgainBeforeTheEnd) {
  Connected();
  TrainRank(1);
  agent_.OnAttempt(key_, ContributionStored{1, 1, {}, "/own"}, now_);
  agent_.OnDisconnected(absl::UnavailableError("gone"), now_);
  TrainerEnded finished;
  finished.exit.ranks = {ExitStatus{false, 0}};
  agent_.OnAttempt(key_, finished, now_);
  TickAtDeadline();
  Welcome();
  EXPECT_THAT(welcomed_, ElementsAre("contribution to round 1", "event 1"));
}

TEST_F(AgentTest, Leave_WhileTraining_WaitsForTheEndToBeAcknowledged) {
  Connected();
  Train();
  EXPECT_THAT(Words(agent_.Leave(now_)), ElementsAre(R"({"command": "stop", "checkpoint": true})"));
  EXPECT_THAT(Assign(2), ElementsAre("event 1")) << "refused";
  TrainerExit exit;
  exit.ranks = {ExitStatus{false, 3}};
  EXPECT_THAT(Words(agent_.OnAttempt(key_, TrainerEnded{exit, {}}, now_)),
              ElementsAre("persist 1", "event 1"));
  EXPECT_THAT(Ack(1), ElementsAre("record ack", "forget", "leave"));
}

TEST_F(AgentTest, Leave_WithoutACoordinator_IsBounded) {
  Connected();
  Train();
  agent_.Leave(now_);
  agent_.OnDisconnected(absl::UnavailableError("gone"), now_);
  bool left = false;
  for (int round = 0; round < 1000 && !left; ++round) {
    for (const std::string& word : TickAtDeadline()) left = left || word == "leave";
    if (!left) agent_.OnDisconnected(absl::UnavailableError("gone"), now_);
  }
  EXPECT_TRUE(left);
  EXPECT_LE(now_, kNow + absl::Seconds(61));
}

}  // namespace
}  // namespace offshoot::worker
