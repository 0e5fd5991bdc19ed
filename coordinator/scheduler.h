// What should start where: Schedule(snapshot, now) -> plan. Pure and deterministic: no store, lock,
// log or clock inside; equal snapshots give equal plans (ties are broken by id). The controller
// applies a plan only while the store is still at the snapshot's version. Thread-safe (no state).
//
// Jobs are taken by priority, then by age. For each: filter the workers that could ever run it
// (none: infeasible, with the reason), then those that could now (none: waiting, for what), then
// rank them: the fullest worker that fits first, so that whole workers stay free for large jobs.
// A gang is placed whole or not at all.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "coordinator/records.h"

namespace offshoot {

struct SchedulableDevice {
  std::string device_id;
  std::string kind;
  std::string model;
  std::int64_t memory_bytes = 0;
  bool busy = false;
};

struct SchedulableWorker {
  WorkerId worker_id;
  std::string name;
  std::vector<SchedulableDevice> devices;
  std::map<std::string, std::string> labels;
  bool connected = false;  // has a session: can be sent an assignment now
  bool draining = false;
  int preflights = 0;  // running there
};

enum class WorkKind { kPreflight, kTrain };

struct WaitingJob {
  std::shared_ptr<const JobDefinition> definition;
  WorkKind kind = WorkKind::kTrain;
  absl::Time not_before = absl::InfinitePast();

  const JobId& id() const { return definition->job_id; }
};

struct ClusterSnapshot {
  std::int64_t version = 0;  // of the store it was taken from
  std::vector<SchedulableWorker> workers;
  std::vector<WaitingJob> waiting;
};

// The ranks of one job on one worker's devices.
struct Start {
  JobId job_id;
  WorkerId worker_id;
  std::vector<std::string> device_ids;
  bool operator==(const Start&) const = default;
};

struct PreflightStart {
  JobId job_id;
  WorkerId worker_id;
  bool operator==(const PreflightStart&) const = default;
};

// Why a job was left where it is.
struct WaitingReason {
  JobId job_id;
  bool infeasible = false;  // no worker that is known could ever run it
  std::string sentence;
  bool operator==(const WaitingReason&) const = default;
};

struct Plan {
  std::int64_t snapshot_version = 0;
  std::vector<Start> starts;
  std::vector<PreflightStart> preflights;
  std::vector<WaitingReason> waiting;
  // When to look again although nothing happened (a backoff ends); InfiniteFuture: never.
  absl::Time look_again = absl::InfiniteFuture();
  bool operator==(const Plan&) const = default;
};

inline constexpr int kPreflightsPerWorker = 2;

Plan Schedule(const ClusterSnapshot& snapshot, absl::Time now);

}  // namespace offshoot
