// What must hold after every transaction of the coordinator, whatever happened: an observer between
// controller and store that keeps its own picture and names the first thing that is wrong.
//
// Its picture of a team's use is its own, too: made of the writes, not of what the controller says.
// Not thread-safe.
#pragma once

#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/time/time.h"
#include "coordinator/scheduler.h"
#include "coordinator/scheduling_policy.h"
#include "coordinator/store.h"

namespace offshoot::sim {

class Audit {
 public:
  // workers_lie: steps that workers tell prove nothing.
  Audit(const SchedulingPolicy& policy, bool workers_lie)
      : policy_(policy), workers_lie_(workers_lie) {}

  // A transaction that is made: what it says must follow from what was written before.
  void Examine(const StoreWrite& write, absl::Time now);
  // What a coordinator that starts is told must be what was written.
  void ExamineLoad(const LoadedState& state);
  // The use of the teams is right, and the one that comes first by it is served first.
  void ExaminePlan(const ClusterSnapshot& snapshot, const Plan& plan, absl::Time now);
  // After all has come to rest: every job that was acknowledged has ended, once, or is known to be
  // infeasible.
  void ExamineEnd(const std::set<JobId>& acknowledged, const std::set<JobId>& infeasible);
  // Anything seen elsewhere.
  void Fail(const JobId& job_id, const std::string& what);

  // Empty: all is well.
  const std::string& violation() const { return violation_; }
  const std::unordered_map<std::string, JobRecord>& jobs() const { return jobs_; }
  const JobRecord* Find(const JobId& job_id) const;
  int live() const { return live_; }  // not terminal, or with an open attempt
  int published() const { return static_cast<int>(derivatives_.size()); }
  int attempts() const { return attempts_; }

 private:
  struct Held {
    int devices = 0;
    int jobs = 0;
  };
  struct Use {
    double device_seconds = 0;
    absl::Time as_of = absl::InfinitePast();
  };

  void ExamineJob(const JobRecord& before, const JobRecord& job);
  void ExamineAttempts(const JobRecord& before, const JobRecord& job);
  void ExaminePlacement(const JobRecord& before, const JobRecord& job);
  void ExamineProgress(const JobRecord& before, const JobRecord& job);
  void ExamineEvents(const std::vector<JobEventRecord>& events);
  void ExamineLimits(const JobRecord& job);
  void ExamineOrder(const ClusterSnapshot& snapshot, const Plan& plan, absl::Time now);
  void Release(const JobRecord& job);
  void Hold(const JobRecord& job);
  void Accrue(const std::string& team);
  int PriorityOf(const JobClass& job_class) const;

  const SchedulingPolicy& policy_;
  const bool workers_lie_;
  absl::Time now_ = absl::InfinitePast();
  std::string violation_;
  std::unordered_map<std::string, JobRecord> jobs_;
  std::unordered_map<std::string, std::int64_t> sequences_;
  std::unordered_map<std::string, std::int64_t> placed_from_;  // step of the checkpoint
  std::map<std::int64_t, Effect> effects_;                     // stored, not done
  std::set<JobId> derivatives_;
  std::unordered_map<std::string, JobId> devices_;  // "worker device", held by open attempts
  std::map<std::string, Held> teams_;
  std::map<std::string, Held> queues_;
  std::map<std::string, Use> use_;
  int live_ = 0;
  int attempts_ = 0;
};

}  // namespace offshoot::sim
