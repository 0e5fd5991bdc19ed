// Clusters as values, for tests of the scheduler.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/scheduler.h"

namespace offshoot {

inline const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

inline SchedulableWorker MakeWorker(const std::string& id, int cpus, int gpus = 0,
                                    std::map<std::string, std::string> labels = {},
                                    bool joins_gangs = true, double speed = 0) {
  auto offer = std::make_shared<WorkerOffer>();
  offer->worker_id = WorkerId(id);
  offer->name = id;
  offer->labels.insert(labels.begin(), labels.end());
  offer->joins_gangs = joins_gangs;
  const auto add = [&](int count, const DeviceSort& sort) {
    const auto shared = std::make_shared<const DeviceSort>(sort);
    for (int i = 0; i < count; ++i) {
      offer->devices.push_back({absl::StrCat(sort.kind, ":", i), shared});
    }
  };
  add(cpus, {"cpu", "EPYC", std::int64_t{8} << 30, "class of cpu", SpeedTier(speed)});
  add(gpus,
      {"cuda", "NVIDIA H100 80GB HBM3", std::int64_t{80} << 30, "class of gpu", SpeedTier(speed)});
  SchedulableWorker worker;
  worker.offer = std::move(offer);
  worker.connected = true;
  return worker;
}

inline JobRequirements Ranks(int ranks, const std::string& kind = "") {
  JobRequirements requirements;
  requirements.ranks = ranks;
  requirements.device_kind = kind;
  return requirements;
}

inline WaitingJob MakeJob(const std::string& id, int age_s, JobRequirements requirements = {},
                          int priority = 0, const std::string& team = "default",
                          const std::string& queue = "default") {
  WaitingJob job;
  job.job_id = JobId(id);
  job.job_class =
      std::make_shared<const JobClass>(JobClass{team, queue, priority, std::move(requirements)});
  job.created = kNow - absl::Seconds(age_s);
  return job;
}

// A job that runs on devices of one worker.
inline RunningJob& Occupy(ClusterSnapshot& snapshot, const std::string& worker_id,
                          std::vector<int> devices, int priority = 0,
                          const std::string& team = "default") {
  RunningJob& job = snapshot.running.emplace_back();
  job.job_id = JobId(absl::StrCat("run-", snapshot.running.size()));
  job.job_class = std::make_shared<const JobClass>(
      JobClass{team, kDefaultName, priority, Ranks(static_cast<int>(devices.size()))});
  job.parts = {DevicePart{WorkerId(worker_id), {devices.begin(), devices.end()}}};
  job.started = kNow - absl::Seconds(60);
  job.preemptible = true;
  return job;
}

}  // namespace offshoot
