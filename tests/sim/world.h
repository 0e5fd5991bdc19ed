// A whole cluster in one thread under a fake clock: the real controller, lifecycle, scheduler,
// store and worker agents; a simulated network, disks, trainers and users. One seed gives one run.
//
//   users ──▶ controller ◀──links (SimLink)──▶ agents ──▶ trainers
//                 │                              │
//            FaultyStore ── Audit          journal (survives)
//
// README.md lists the faults and what must hold.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/artifacts.h"
#include "coordinator/controller.h"
#include "coordinator/job_signals.h"
#include "coordinator/outputs.h"
#include "coordinator/store.h"
#include "tests/sim/audit.h"

namespace offshoot::sim {

struct WorldOptions {
  unsigned seed = 0;
  int jobs = 50;
  int workers = 6;
  bool faults = true;
  bool on_disk = false;   // SQLite and the workers' real journals
  std::string directory;  // for artifacts, outputs and what is on disk; exists
};

class SimWorker;
class FaultyStore;

class World {
 public:
  explicit World(WorldOptions options);
  ~World();

  // What was violated; empty: nothing.
  std::string Run();
  struct Counts {
    std::int64_t events = 0;
    std::int64_t crashes = 0;  // of the coordinator
    std::int64_t torn_commits = 0;
    std::int64_t lies = 0;
    std::int64_t published = 0;
    std::int64_t attempts = 0;
    std::int64_t seconds = 0;  // simulated
  };
  Counts counts() const;

  // --- for the parts of the world ---
  const WorldOptions& options() const { return options_; }
  absl::Time now() const { return now_; }
  void After(absl::Duration delay, std::function<void()> action);
  int Below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  // Of a fault: never once things settle down.
  bool Chance(int per_mille) { return faults_ && Below(1000) < per_mille; }
  absl::Duration Delay(int from_ms, int to_ms) {
    return absl::Milliseconds(from_ms + Below(to_ms - from_ms + 1));
  }
  bool faults() const { return faults_; }
  Controller* controller() { return controller_.get(); }
  Audit& audit() { return audit_; }
  // Counts its lives: what was meant for an earlier one does not reach a later one. 0: it is dead.
  int coordinator_life() const { return controller_ == nullptr || dying_ ? 0 : coordinator_life_; }
  // What the coordinator says now leaves it then: its disk may be slow.
  absl::Time coordinator_free() const { return std::max(now_, busy_until_); }
  void Pump();
  bool IsPartitioned(int worker) const { return HealedAt(worker) > now_; }
  absl::Time HealedAt(int worker) const;
  bool lies() const { return liar_ >= 0; }
  bool IsLiar(int worker) const { return worker == liar_ && faults_; }
  void CountLie() { ++lies_; }
  const FileEntry& artifact() const { return artifact_; }
  SimWorker* WorkerNamed(const WorkerId& worker_id);
  const JobRecord* FindJob(const JobId& job_id) const { return audit_.Find(job_id); }
  JobId AnyJob();                      // empty where there is none
  void Note(const std::string& what);  // shown with OFFSHOOT_SIM_TRACE

  // --- for the store ---
  void SlowDisk(absl::Duration time) { busy_until_ = std::max(busy_until_, now_) + time; }
  // The process is dead from now on, although the call under way returns.
  void KillCoordinator();
  void CountTornCommit() { ++torn_commits_; }
  // Every lease has a full period again.
  void NoteLoad() { coordinator_since_ = now_; }

 private:
  void StartCoordinator();
  void CrashCoordinator();
  void Submit(int number, int try_number);
  void Watch();
  void DisturbJobs();
  void DisturbCluster();
  void SettleDown();
  bool AllEnded() const;
  JobDefinition MakeDefinition(int number);
  Plan MakePlan(const ClusterSnapshot& snapshot, absl::Time now);

  struct Item {
    absl::Time at;
    std::int64_t number;  // in the order in which they were entered
    std::function<void()> action;
  };
  static bool Later(const Item& one, const Item& other) {
    return one.at != other.at ? one.at > other.at : one.number > other.number;
  }

  const WorldOptions options_;
  std::mt19937 random_;
  absl::Time now_;
  FakeClock clock_;
  std::shared_ptr<SchedulingPolicy> policy_;
  int liar_ = -1;
  Audit audit_;
  std::unique_ptr<FaultyStore> store_;
  std::unique_ptr<ArtifactDirectory> artifacts_;
  FileEntry artifact_;
  std::unique_ptr<AttemptOutputs> outputs_;
  JobSignals signals_;
  std::shared_ptr<const JobSpec> spec_;
  std::shared_ptr<const JobSpec> gang_spec_;
  std::unique_ptr<Controller> controller_;
  std::vector<std::unique_ptr<SimWorker>> workers_;
  std::vector<Item> agenda_;  // a heap
  std::int64_t entered_ = 0;
  std::map<int, absl::Time> partitioned_until_;
  absl::Time wake_ = absl::InfiniteFuture();
  absl::Time busy_until_ = absl::InfinitePast();
  std::set<JobId> acknowledged_;
  std::set<JobId> infeasible_;
  std::set<int> answered_;                  // submits
  std::map<int, absl::Time> reached_;       // when a worker could be reached last
  std::map<std::string, int> unexplained_;  // jobs that wait: for how many rounds nobody says why
  absl::Time coordinator_since_;
  Plan late_plan_;
  bool faults_ = true;
  bool pumping_ = false;
  bool dying_ = false;
  int coordinator_life_ = 0;
  std::int64_t events_ = 0;
  std::int64_t crashes_ = 0;
  std::int64_t torn_commits_ = 0;
  std::int64_t lies_ = 0;
};

}  // namespace offshoot::sim
