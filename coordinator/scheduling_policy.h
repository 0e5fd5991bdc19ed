// What the administrator decides about sharing the machines: teams, queues and how the scheduler
// weighs them. Plain values, read from the coordinator's settings file (options.cc).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace offshoot {

// 0: no limit.
struct ShareLimits {
  int max_devices = 0;  // held at a time
  int max_jobs = 0;     // running at a time
  bool operator==(const ShareLimits&) const = default;
};

struct TeamPolicy {
  // A team of weight 2 gets twice the device time of one of weight 1 while both have jobs waiting.
  double weight = 1;
  ShareLimits limits;
  bool operator==(const TeamPolicy&) const = default;
};

struct QueuePolicy {
  int priority = 0;  // added to that of its jobs
  ShareLimits limits;
  bool operator==(const QueuePolicy&) const = default;
};

inline constexpr char kDefaultName[] = "default";  // the team and queue of jobs that name none

struct SchedulingPolicy {
  // "default" holds for the teams that are not named.
  std::map<std::string, TeamPolicy> teams;
  // "default" is always there.
  std::map<std::string, QueuePolicy> queues;
  absl::Duration usage_half_life = absl::Hours(24);
  // Of a job about which nothing is known; only estimates depend on it.
  absl::Duration expected_runtime = absl::Hours(1);
  // Jobs with a max_runtime up to this may use devices that are being kept for a larger job whose
  // start cannot be foreseen.
  absl::Duration longest_backfill = absl::Minutes(10);
  bool preemption = true;
  // Gangs keep within one value of the first of these labels where they can, then of the next.
  std::vector<std::string> locality_labels = {"rack", "zone"};
  int max_starts = 256;      // in one plan; the next follows at once
  int max_preemptions = 64;  // in one plan

  const TeamPolicy& TeamOf(const std::string& name) const {
    static const TeamPolicy kPlain;
    auto it = teams.find(name);
    if (it == teams.end()) it = teams.find(kDefaultName);
    return it == teams.end() ? kPlain : it->second;
  }
  const QueuePolicy& QueueOf(const std::string& name) const {
    static const QueuePolicy kPlain;
    const auto it = queues.find(name);
    return it == queues.end() ? kPlain : it->second;
  }
  bool HasQueue(const std::string& name) const {
    return name == kDefaultName || queues.find(name) != queues.end();
  }
};

}  // namespace offshoot
