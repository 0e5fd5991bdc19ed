// One worker of the simulation: the real agent with a simulated link and simulated trainers; its
// journal is in memory or, on disk, the real one.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/sim_link.h"
#include "tests/sim/world.h"
#include "worker/agent.h"
#include "worker/run_journal.h"

namespace offshoot::sim {

class SimWorker {
 public:
  SimWorker(World& world, int number, int devices);
  ~SimWorker();

  void Start();  // also after a crash: with what the journal has
  // whole_machine: what was not synced is lost, too.
  void Crash(bool whole_machine);
  bool up() const { return agent_ != nullptr; }
  int number() const { return number_; }
  const WorkerId& id() const { return id_; }

  void BreakLink(absl::Duration longest_until_noticed);
  void Receive(SimLink& link, const v1::CoordinatorMessage& message);
  void LinkClosed(SimLink& link, const absl::Status& status);

  enum class RankState { kNone, kAlive, kFinished, kDead };
  // Of this worker's ranks of an attempt, for the other ranks of the gang.
  RankState StateOf(const worker::AttemptKey& key) const;

 private:
  // What is on disk: survives a crash.
  struct Kept {
    v1::Assignment assignment;
    std::vector<v1::AttemptEvent> events;
    std::int64_t acknowledged = 0;
    std::optional<worker::CheckpointOnDisk> checkpoint;
    std::int64_t last_step = 0;
  };
  struct Trainer {
    int life = 0;  // counts launches, so that what an earlier one was to do is not done
    bool alive = false;
    bool finished = false;
    bool stop_asked = false;
    bool hung = false;
    std::int64_t step = 0;
    // Of a gang that exchanges artifacts: the round under way, the last one contributed to, and of
    // whom contributions have come.
    std::int64_t round = 1;
    std::int64_t contributed = 0;
    std::map<std::int64_t, std::set<int>> heard = {};
  };

  // The agent (sim_worker.cc).
  void Do(worker::AgentEffects effects);
  void Persist(const worker::PersistEvent& persist);
  void Carry(const worker::AttemptKey& key, const worker::AttemptAction& action);
  void Input(const worker::AttemptKey& key, const worker::AttemptInput& input);
  void Say(const worker::AttemptKey& key, worker::TrainerEvent event);
  void SayWhatRanksDo(const worker::AttemptKey& key, std::int64_t step,
                      worker::TrainerActivity::Waiting waiting);
  void ScheduleTick();
  // Runs later unless the worker has crashed meanwhile.
  void Later(absl::Duration delay, std::function<void()> action);
  std::vector<worker::RecoveredAttempt> Recovered();
  void Lie();
  v1::AttemptEvent MakeLie();

  // Trainers (sim_trainer.cc).
  void Launch(const worker::AttemptKey& key, bool verify);
  void TakeDevices(const worker::AttemptKey& key);
  void Step(const worker::AttemptKey& key, int life);
  void Check(const worker::AttemptKey& key);
  bool WaitForGang(const worker::AttemptKey& key, Trainer& trainer);
  bool LeaderHasFinished(const worker::AttemptKey& key) const;
  bool HasWholeRound(const worker::AttemptKey& key, Trainer& trainer);
  void Train(const worker::AttemptKey& key, Trainer& trainer);
  void WriteCheckpoint(const worker::AttemptKey& key, Trainer& trainer);
  void Exit(const worker::AttemptKey& key, int code, bool signalled = false);
  void Upload(const worker::AttemptKey& key, std::int64_t step, bool result);
  // What a rank contributes is uploaded or fetched, which done tells.
  void Exchange(const worker::AttemptKey& key, const worker::AttemptInput& done);
  // The client of artifacts tries again until it can.
  bool ReachesArtifacts() const;
  bool GangIsReady(const worker::AttemptKey& key, bool* broken) const;
  void StepLater(const worker::AttemptKey& key, int life, absl::Duration delay);

  World& world_;
  const int number_;
  const WorkerId id_;
  const int devices_;
  int incarnation_ = 0;
  std::unique_ptr<worker::Agent> agent_;
  std::unique_ptr<worker::RunJournal> disk_;  // null: in memory
  std::map<worker::AttemptKey, Kept> kept_;
  std::map<worker::AttemptKey, Trainer> trainers_;
  std::map<worker::AttemptKey, std::set<worker::AttemptTask>> tasks_;
  std::map<std::string, worker::AttemptKey> occupied_;  // device: whose process runs there
  std::shared_ptr<SimLink> link_;                       // null: none is open
  absl::Time next_tick_ = absl::InfiniteFuture();
};

}  // namespace offshoot::sim
