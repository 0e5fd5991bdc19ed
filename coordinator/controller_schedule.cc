// The controller's part about time and placement: leases, snapshots, plans.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/ids.h"
#include "coordinator/assignment.h"
#include "coordinator/controller.h"

namespace offshoot {
namespace {

// With very many waiting jobs a cycle costs milliseconds; this keeps it to a small part of the
// time.
constexpr std::size_t kUnhurriedFrom = 256;
constexpr absl::Duration kPausePerWaitingJob = absl::Microseconds(20);

}  // namespace

void Controller::HandleTimers() {
  if (next_expiry_ > now_) return;
  std::vector<JobId> lost;
  std::vector<JobId> overdue;
  next_expiry_ = absl::InfiniteFuture();
  for (const auto& [job_id, lease] : leases_) {
    if (lease.expires <= now_) {
      lost.push_back(job_id);
      continue;
    }
    next_expiry_ = std::min(next_expiry_, lease.expires);
    if (IsTerminal(jobs_.at(job_id).state)) continue;
    if (lease.runtime_ends <= now_) {
      overdue.push_back(job_id);
    } else {
      next_expiry_ = std::min(next_expiry_, lease.runtime_ends);
    }
  }
  for (const JobId& job_id : overdue) (void)Apply(job_id, RuntimeExceeded{});
  for (const JobId& job_id : lost) {
    const WorkerState& worker = workers_[leases_.at(job_id).worker_id];
    LoseAttempt(job_id, "WORKER_LOST",
                absl::StrCat("worker ", worker.record.name, " was not heard of for ",
                             absl::FormatDuration(options_.lease)));
  }
}

ClusterSnapshot Controller::TakeSnapshot() const {
  ClusterSnapshot snapshot;
  snapshot.version = version_;
  std::map<WorkerId, std::set<std::string>> busy;
  for (const auto& [job_id, lease] : leases_) {
    const AttemptRecord& attempt = jobs_.at(job_id).attempts.back();
    busy[lease.worker_id].insert(attempt.devices.begin(), attempt.devices.end());
  }
  std::map<WorkerId, int> preflights;
  std::set<std::string> keys;
  for (const auto& [job_id, preflight] : preflights_) {
    ++preflights[preflight.worker_id];
    const auto job = jobs_.find(job_id);
    if (job != jobs_.end() && job->second.inputs != nullptr) {
      keys.insert(job->second.inputs->preflight_key);
    }
  }
  for (const auto& [worker_id, state] : workers_) {
    if (state.session == 0 && now_ - state.last_seen >= options_.lease) continue;
    SchedulableWorker worker;
    worker.worker_id = worker_id;
    worker.name = state.record.name;
    worker.labels = state.record.labels;
    worker.connected = state.session != 0;
    worker.draining = state.record.draining;
    worker.preflights = preflights[worker_id];
    for (const DeviceRecord& device : state.record.devices) {
      worker.devices.push_back(SchedulableDevice{device.device_id, device.kind, device.model,
                                                 device.memory_bytes,
                                                 busy[worker_id].contains(device.device_id)});
    }
    snapshot.workers.push_back(std::move(worker));
  }
  for (const JobId& job_id : waiting_) {
    const JobRecord& job = jobs_.at(job_id);
    const WorkKind kind =
        job.state == JobState::kValidating ? WorkKind::kPreflight : WorkKind::kTrain;
    // One check answers for all jobs with the same key.
    if (kind == WorkKind::kPreflight &&
        (preflights_.contains(job_id) || !keys.insert(job.inputs->preflight_key).second)) {
      continue;
    }
    snapshot.waiting.push_back(WaitingJob{job.definition, kind, job.not_before});
  }
  return snapshot;
}

void Controller::ScheduleNow() {
  schedule_wanted_ = false;
  const auto start = std::chrono::steady_clock::now();
  const ClusterSnapshot snapshot = TakeSnapshot();
  ApplyPlan(Schedule(snapshot, now_));
  counters_.schedules += 1;
  counters_.schedule_microseconds += std::chrono::duration_cast<std::chrono::microseconds>(
                                         std::chrono::steady_clock::now() - start)
                                         .count();
  schedule_not_before_ =
      snapshot.waiting.size() < kUnhurriedFrom
          ? absl::InfinitePast()
          : now_ + static_cast<double>(snapshot.waiting.size()) * kPausePerWaitingJob;
}

void Controller::ApplyPlan(const Plan& plan) {
  if (plan.snapshot_version != version_) {
    schedule_wanted_ = true;  // the world has changed since: plan again
    return;
  }
  for (const Start& start : plan.starts) {
    const WorkerState& worker = workers_.at(start.worker_id);
    const JobRecord* job = FindJob(start.job_id);
    const absl::Time since =
        job->attempts.empty() ? job->definition->created : job->attempts.back().finished;
    const absl::Status status = Apply(
        start.job_id,
        Placed{start.worker_id, worker.record.name, start.device_ids, MakeRandomId("lease-")});
    if (!status.ok()) {
      spdlog::error("a plan does not fit: {}", status.ToString());
      continue;
    }
    counters_.placements += 1;
    counters_.queue_wait_microseconds += absl::ToInt64Microseconds(now_ - since);
  }
  for (const PreflightStart& start : plan.preflights) {
    preflights_[start.job_id] = Preflight{start.worker_id, workers_.at(start.worker_id).session};
    AfterCommit([this, job_id = start.job_id](const absl::Status& status) {
      if (status.ok()) SendAssignment(job_id, 0);
    });
  }
  look_again_ = plan.look_again;
  schedule_wanted_ = false;  // the placements just made need no other look
  auto reasons = std::make_shared<std::map<JobId, WaitingReason>>();
  for (const WaitingReason& reason : plan.waiting) reasons->emplace(reason.job_id, reason);
  absl::MutexLock lock(&view_mutex_);
  waiting_view_ = std::move(reasons);
}

void Controller::SendAssignment(const JobId& job_id, std::int32_t attempt) {
  const JobRecord* job = FindJob(job_id);
  if (job == nullptr || job->inputs == nullptr) return;
  WorkerId worker_id;
  if (attempt == 0) {
    const auto it = preflights_.find(job_id);
    if (it == preflights_.end()) return;
    worker_id = it->second.worker_id;
  } else {
    const auto it = leases_.find(job_id);
    if (it == leases_.end() || it->second.attempt != attempt || IsTerminal(job->state)) return;
    worker_id = it->second.worker_id;
  }
  // A worker that is away says what it holds when it comes back: what was not sent is then lost and
  // placed again.
  const WorkerState& worker = workers_.at(worker_id);
  absl::StatusOr<AssignMessage> message =
      BuildAssignment(*job, attempt == 0 ? WorkKind::kPreflight : WorkKind::kTrain, worker.record,
                      options_.version);
  if (!message.ok()) {
    // A spec that an older version took and this one refuses.
    PostAlways([this, job_id, attempt, why = std::string(message.status().message())] {
      if (attempt == 0) {
        (void)Apply(job_id, PreflightFailed{"BAD_SPEC", why, false});
      } else {
        (void)Apply(job_id, AttemptEnded{"BAD_SPEC", why, false, 0, 0, ""});
      }
    });
    return;
  }
  Send(worker.session, *std::move(message));
}

}  // namespace offshoot
