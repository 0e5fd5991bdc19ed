// What should start where, and what should make room: Schedule(snapshot, now) -> plan. Pure and
// deterministic: no store, lock, log or clock inside; equal snapshots give equal plans, in whatever
// order they list things (ties are broken by id). The controller applies a plan only while the
// store is still at the snapshot's version. Thread-safe (no state).
//
//   order ──▶ limits ──▶ filter ──▶ rank ──▶ start
//                │          │         └─ no room ──▶ reserve ──▶ preempt ──▶ wait
//                └─ wait    └─ infeasible
//
// Order: priority (the job's and its queue's), then the team that has used least for its weight
// (decayed device time, with what this plan gives it), then age. Filter: labels, taints, device.
// Rank: faster devices first, then the fullest place that fits, so that whole workers stay free for
// large jobs. A gang is placed whole or not at all, on one kind of device: on one worker where one
// has room, else within one value of a locality label, over as few workers as can be. A worker that
// others do not reach takes part where the ranks need not reach each other.
//
// No starvation: the first job of each shape that does not fit keeps the free devices it could use.
// A later job gets one of them only when it is sure to be gone (max_runtime) before the first could
// start (backfill). A job of higher priority takes devices from running jobs of lower priority,
// which checkpoint and wait again.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "coordinator/records.h"
#include "coordinator/scheduling_policy.h"

namespace offshoot {

// All that jobs can tell devices apart by. Devices of one sort share it, so that a plan looks at
// sorts and not at every device.
struct DeviceSort {
  std::string kind;
  std::string model;
  std::int64_t memory_bytes = 0;
  // What a bit-identical continuation must find again: kind, model, threads, instruction sets.
  std::string device_class = {};
  int speed_tier = 0;  // SpeedTier of what was measured

  bool operator==(const DeviceSort&) const = default;
  template <typename H>
  friend H AbslHashValue(H state, const DeviceSort& sort) {
    return H::combine(std::move(state), sort.kind, sort.model, sort.memory_bytes, sort.device_class,
                      sort.speed_tier);
  }
};

// Measured speeds of one tier are taken for equal. speed: of any unit; 0: not known.
int SpeedTier(double speed);

struct SchedulableDevice {
  std::string device_id;
  std::shared_ptr<const DeviceSort> sort;
};

// What a worker offers: unchanged as long as its registration says the same.
struct WorkerOffer {
  WorkerId worker_id;
  std::string name;
  std::vector<SchedulableDevice> devices;
  absl::btree_map<std::string, std::string> labels;
  // Labels that keep away every job that does not ask for them.
  std::map<std::string, std::string> taints;
  bool joins_gangs = true;  // ranks on other workers can reach its own
};

struct SchedulableWorker {
  std::shared_ptr<const WorkerOffer> offer;
  bool connected = false;  // has a session: can be sent an assignment now
  // Why it gets nothing new: drained or set aside.
  bool draining = false;
  int preflights = 0;  // running there

  const WorkerId& id() const { return offer->worker_id; }
};

enum class WorkKind { kPreflight, kTrain };

// What jobs have in common for the scheduler. Shared between jobs, so that a hundred thousand of
// them are a few hundred classes.
struct JobClass {
  std::string team;
  std::string queue;
  int priority = 0;  // without the queue's
  JobRequirements requirements;
  bool operator==(const JobClass&) const = default;
};

struct WaitingJob {
  JobId job_id;
  std::shared_ptr<const JobClass> job_class;
  absl::Time created;
  WorkKind kind = WorkKind::kTrain;
  absl::Time not_before = absl::InfinitePast();
  absl::Duration runtime_left = absl::InfiniteDuration();  // until max_runtime stops it
  // Not empty: only on such devices (DeviceSort::device_class) does it go on bit for bit.
  std::string device_class = {};
  // Where its check failed or a rank of it hung: it goes elsewhere where it ever can.
  std::vector<WorkerId> avoid = {};  // sorted
};

// Of a job; most have a few devices of one worker, and no memory of their own elsewhere then.
struct DevicePart {
  WorkerId worker_id;
  absl::InlinedVector<int, 8> devices;  // indices
};

struct RunningJob {
  JobId job_id;
  std::shared_ptr<const JobClass> job_class;
  absl::InlinedVector<DevicePart, 1> parts;
  absl::Time started;
  absl::Time expected_end = absl::InfiniteFuture();  // InfiniteFuture: not known
  absl::Time latest_end = absl::InfiniteFuture();    // max_runtime stops it then
  bool stopping = false;     // told to make room already, or over: its devices come free soon
  bool preemptible = false;  // can be asked to
};

struct TeamUse {
  std::string team;
  double device_seconds = 0;  // decayed to the snapshot's time
  bool operator==(const TeamUse&) const = default;
};

struct ClusterSnapshot {
  std::int64_t version = 0;  // of the store it was taken from
  std::shared_ptr<const SchedulingPolicy> policy = std::make_shared<SchedulingPolicy>();
  std::vector<SchedulableWorker> workers;
  std::vector<WaitingJob> waiting;
  std::vector<RunningJob> running;  // their devices are taken, all others free
  std::vector<TeamUse> use;
};

// Ranks of a job on one worker's devices.
struct StartPart {
  WorkerId worker_id;
  std::vector<std::string> device_ids;
  bool operator==(const StartPart&) const = default;
};

// All ranks of one job; the part with rank 0 first.
struct Start {
  JobId job_id;
  std::vector<StartPart> parts;
  bool operator==(const Start&) const = default;
};

struct PreflightStart {
  JobId job_id;
  WorkerId worker_id;
  bool operator==(const PreflightStart&) const = default;
};

// A running job that is to checkpoint and wait again, so that another can start.
struct Preemption {
  JobId job_id;
  JobId for_job_id;
  bool operator==(const Preemption&) const = default;
};

// Why a job was left where it is.
struct WaitingReason {
  JobId job_id;
  bool infeasible = false;  // no worker that is known could ever run it
  std::shared_ptr<const std::string> sentence;
  int place = 0;  // in the order of the queue, from 1; 0: infeasible
  // A guess from the running jobs' progress and what waits before it; InfiniteFuture: none.
  absl::Time estimated_start = absl::InfiniteFuture();
};
bool operator==(const WaitingReason& one, const WaitingReason& other);

struct Plan {
  std::int64_t snapshot_version = 0;
  std::vector<Start> starts;
  std::vector<PreflightStart> preflights;
  std::vector<Preemption> preemptions;
  std::vector<WaitingReason> waiting;  // in the order of the queue
  // When to look again although nothing happened (a backoff ends, more fits than max_starts);
  // InfiniteFuture: never.
  absl::Time look_again = absl::InfiniteFuture();
  bool operator==(const Plan&) const = default;
};

inline constexpr int kPreflightsPerWorker = 2;

Plan Schedule(const ClusterSnapshot& snapshot, absl::Time now);

}  // namespace offshoot
