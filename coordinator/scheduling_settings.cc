#include "coordinator/scheduling_settings.h"

namespace offshoot {
namespace {

ShareLimits LimitsOf(const std::map<std::string, double>& row) {
  return ShareLimits{static_cast<int>(row.at("max_devices")), static_cast<int>(row.at("max_jobs"))};
}

}  // namespace

std::shared_ptr<const SchedulingPolicy> PolicyOf(const SchedulingSettings& given) {
  auto policy = std::make_shared<SchedulingPolicy>(given.policy);
  for (const auto& [name, row] : given.teams) {
    policy->teams[name] = TeamPolicy{row.at("weight"), LimitsOf(row)};
  }
  for (const auto& [name, row] : given.queues) {
    policy->queues[name] = QueuePolicy{static_cast<int>(row.at("priority")), LimitsOf(row)};
  }
  return policy;
}

void DeclareScheduling(Settings& settings, SchedulingSettings& given) {
  constexpr double kMost = 100'000;
  const Settings::Column max_devices{"max_devices", 0, 0, kMost, true};
  const Settings::Column max_jobs{"max_jobs", 0, 0, kMost, true};
  settings.AddTable("teams", &given.teams,
                    {{"weight", 1, 0.001, 1000, false}, max_devices, max_jobs},
                    "What each team may use: its weight in the fair share of device time, and the"
                    " devices and jobs it may hold at a time (0: no limit). `default` holds for"
                    " teams that are not named.");
  settings.AddTable("queues", &given.queues,
                    {{"priority", 0, -1000, 1000, true}, max_devices, max_jobs},
                    "Queues besides `default` that jobs may name: the priority they add to that of"
                    " their jobs, and the devices and jobs they may hold at a time (0: no limit).");
  SchedulingPolicy& policy = given.policy;
  settings.AddMilliseconds("usage_half_life_ms", &policy.usage_half_life, absl::Minutes(1),
                           absl::Hours(24 * 365),
                           "After so long, device time a team has used counts half.");
  settings.AddMilliseconds("expected_runtime_ms", &policy.expected_runtime, absl::Seconds(1),
                           absl::Hours(24 * 30),
                           "How long a job is thought to run of which nothing is known; for"
                           " estimates of starts, and for taking turns among waiting jobs.");
  settings.AddMilliseconds(
      "longest_backfill_ms", &policy.longest_backfill, absl::ZeroDuration(), absl::Hours(24),
      "Jobs whose max_runtime is at most this may run on devices that are kept"
      " for a larger job, where it cannot be foreseen when that one can start.");
  settings.AddTruth("preemption", &policy.preemption,
                    "Jobs of higher priority take devices from running ones of lower priority,"
                    " which write a checkpoint, wait again and go on later.");
  settings.AddTextList("locality_labels", &policy.locality_labels,
                       "Labels of workers, nearest first: the ranks of a job are kept on workers"
                       " with the same value of the first where that can be, else of the next.");
}

}  // namespace offshoot
