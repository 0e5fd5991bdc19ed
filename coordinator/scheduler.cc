#include "coordinator/scheduler.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace offshoot {
namespace {

bool DeviceFits(const SchedulableDevice& device, const JobRequirements& requirements) {
  if (!requirements.device_kind.empty() && device.kind != requirements.device_kind) return false;
  if (device.memory_bytes < requirements.min_memory_bytes) return false;
  if (!requirements.gpu_models.empty() && device.kind == "cuda") {
    return std::find(requirements.gpu_models.begin(), requirements.gpu_models.end(),
                     device.model) != requirements.gpu_models.end();
  }
  return true;
}

bool LabelsFit(const SchedulableWorker& worker, const JobRequirements& requirements) {
  for (const auto& [key, value] : requirements.labels) {
    const auto it = worker.labels.find(key);
    if (it == worker.labels.end() || it->second != value) return false;
  }
  return true;
}

struct Fit {
  int ever = 0;  // devices of the right sort
  int now = 0;   // of them free
};

// All ranks of a job are of one kind of device.
Fit CountDevices(const SchedulableWorker& worker, const JobRequirements& requirements,
                 absl::string_view kind) {
  Fit fit;
  for (const SchedulableDevice& device : worker.devices) {
    if (device.kind != kind || !DeviceFits(device, requirements)) continue;
    ++fit.ever;
    if (!device.busy) ++fit.now;
  }
  return fit;
}

std::string DeviceWords(const JobRequirements& requirements) {
  std::string words =
      absl::StrCat(requirements.ranks, requirements.device_kind.empty() ? "" : " ",
                   requirements.device_kind, requirements.ranks == 1 ? " device" : " devices");
  if (requirements.min_memory_bytes > 0) {
    absl::StrAppendFormat(&words, " with at least %.1f GiB of memory%s",
                          static_cast<double>(requirements.min_memory_bytes) / (1 << 30),
                          requirements.ranks == 1 ? "" : " each");
  }
  if (!requirements.gpu_models.empty()) {
    absl::StrAppend(&words, " of model ", requirements.gpu_models.front());
    for (std::size_t i = 1; i < requirements.gpu_models.size(); ++i) {
      absl::StrAppend(&words, " or ", requirements.gpu_models[i]);
    }
  }
  return words;
}

// Schedules over a copy of the snapshot whose devices fill up as jobs are placed.
class Scheduler {
 public:
  Scheduler(const ClusterSnapshot& snapshot, absl::Time now)
      : workers_(snapshot.workers), now_(now) {
    plan_.snapshot_version = snapshot.version;
    std::sort(workers_.begin(), workers_.end(),
              [](const auto& a, const auto& b) { return a.worker_id < b.worker_id; });
  }

  void Consider(const WaitingJob& job) {
    if (job.not_before > now_) {
      plan_.look_again = std::min(plan_.look_again, job.not_before);
      Wait(job, false,
           absl::StrCat("waiting ",
                        absl::FormatDuration(absl::Ceil(job.not_before - now_, absl::Seconds(1))),
                        " before the next attempt"));
      return;
    }
    if (job.kind == WorkKind::kPreflight) {
      ConsiderPreflight(job);
    } else {
      ConsiderTraining(job);
    }
  }

  Plan Take() && { return std::move(plan_); }

 private:
  void Wait(const WaitingJob& job, bool infeasible, std::string sentence) {
    plan_.waiting.push_back(WaitingReason{job.id(), infeasible, std::move(sentence)});
  }

  void ConsiderPreflight(const WaitingJob& job) {
    SchedulableWorker* best = nullptr;
    int connected = 0;
    for (SchedulableWorker& worker : workers_) {
      if (!worker.connected || worker.draining) continue;
      ++connected;
      if (worker.preflights >= kPreflightsPerWorker) continue;
      if (best == nullptr || worker.preflights < best->preflights) best = &worker;
    }
    if (best == nullptr) {
      Wait(job, false,
           connected == 0 ? "waiting for a worker to check base model and data: none is connected"
                          : "waiting for a worker that has time to check base model and data");
      return;
    }
    ++best->preflights;
    plan_.preflights.push_back(PreflightStart{job.id(), best->worker_id});
  }

  void ConsiderTraining(const WaitingJob& job) {
    const JobRequirements& requirements = job.definition->requirements;
    SchedulableWorker* best = nullptr;
    std::string best_kind;
    std::tuple<int, int> best_rank;
    bool feasible = false;
    int most = 0;
    for (SchedulableWorker& worker : workers_) {
      if (!LabelsFit(worker, requirements)) continue;
      for (absl::string_view kind : {"cuda", "cpu"}) {
        const Fit fit = CountDevices(worker, requirements, kind);
        if (!worker.draining) most = std::max(most, fit.ever);
        if (worker.draining || fit.ever < requirements.ranks) continue;
        feasible = true;
        if (!worker.connected || fit.now < requirements.ranks) continue;
        // A GPU before a CPU; then the fullest that fits.
        const std::tuple<int, int> rank(kind == "cuda" ? 0 : 1, fit.now);
        if (best == nullptr || rank < best_rank) {
          best = &worker;
          best_kind = std::string(kind);
          best_rank = rank;
        }
      }
    }
    if (best != nullptr) {
      Place(job, *best, best_kind);
    } else if (feasible) {
      Wait(job, false, absl::StrCat("waiting for ", DeviceWords(requirements), " to become free"));
    } else {
      ExplainInfeasible(job, most);
    }
  }

  void Place(const WaitingJob& job, SchedulableWorker& worker, absl::string_view kind) {
    Start start{job.id(), worker.worker_id, {}};
    for (SchedulableDevice& device : worker.devices) {
      if (static_cast<int>(start.device_ids.size()) == job.definition->requirements.ranks) break;
      if (device.busy || device.kind != kind || !DeviceFits(device, job.definition->requirements))
        continue;
      device.busy = true;
      start.device_ids.push_back(device.device_id);
    }
    plan_.starts.push_back(std::move(start));
  }

  void ExplainInfeasible(const WaitingJob& job, int most) {
    if (workers_.empty()) {
      Wait(job, false, "waiting for a worker: none is known; start one with offshoot-worker");
      return;
    }
    std::string sentence = absl::StrCat(
        "no worker offers ", DeviceWords(job.definition->requirements), " on one machine");
    if (most > 0) absl::StrAppend(&sentence, "; the most that one offers is ", most);
    for (const auto& [key, value] : job.definition->requirements.labels) {
      absl::StrAppend(&sentence, " (wanted label ", key, "=", value, ")");
    }
    Wait(job, true, std::move(sentence));
  }

  std::vector<SchedulableWorker> workers_;
  absl::Time now_;
  Plan plan_;
};

}  // namespace

Plan Schedule(const ClusterSnapshot& snapshot, absl::Time now) {
  std::vector<const WaitingJob*> order;
  order.reserve(snapshot.waiting.size());
  for (const WaitingJob& job : snapshot.waiting) order.push_back(&job);
  std::sort(order.begin(), order.end(), [](const WaitingJob* a, const WaitingJob* b) {
    const JobDefinition& first = *a->definition;
    const JobDefinition& second = *b->definition;
    if (first.priority != second.priority) return first.priority > second.priority;
    return std::tie(first.created, first.job_id) < std::tie(second.created, second.job_id);
  });
  Scheduler scheduler(snapshot, now);
  for (const WaitingJob* job : order) scheduler.Consider(*job);
  return std::move(scheduler).Take();
}

}  // namespace offshoot
