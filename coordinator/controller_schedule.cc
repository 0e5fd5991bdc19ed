// The controller's part about time and placement: leases, snapshots, plans.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/ids.h"
#include "common/planted_bugs.h"
#include "coordinator/assignment.h"
#include "coordinator/controller.h"

namespace offshoot {
namespace {

// With very many waiting jobs a cycle costs milliseconds; this keeps it to a small part of the
// time.
constexpr std::size_t kUnhurriedFrom = 256;
constexpr absl::Duration kPausePerWaitingJob = absl::Microseconds(5);

}  // namespace

void Controller::HandleTimers() {
  if (next_expiry_ > now_) return;
  std::vector<std::pair<JobId, WorkerId>> lost;
  std::vector<JobId> overdue;
  next_expiry_ = absl::InfiniteFuture();
  for (const auto& [job_id, lease] : leases_) {
    // All its workers had said that they ended when the coordinator was restarted: its end comes by
    // HandleGangTimers.
    if (lease.expires.empty()) continue;
    const auto first = std::min_element(
        lease.expires.begin(), lease.expires.end(),
        [](const auto& one, const auto& other) { return one.second < other.second; });
    if (first->second <= now_) {
      if (!Planted(PlantedBug::kLeaseIgnored)) lost.emplace_back(job_id, first->first);
      continue;
    }
    next_expiry_ = std::min(next_expiry_, first->second);
    if (IsTerminal(jobs_.at(job_id).state)) continue;
    if (lease.runtime_ends <= now_) {
      overdue.push_back(job_id);
    } else {
      next_expiry_ = std::min(next_expiry_, lease.runtime_ends);
    }
  }
  HandleGangTimers();
  const std::size_t ended =
      std::erase_if(preflights_, [&](const auto& check) { return check.second.expires <= now_; });
  if (ended > 0) schedule_wanted_ = true;  // somebody else gets these checks
  for (const auto& [job_id, check] : preflights_) {
    next_expiry_ = std::min(next_expiry_, check.expires);
  }
  for (const JobId& job_id : overdue) (void)Apply(job_id, RuntimeExceeded{});
  for (const auto& [job_id, worker_id] : lost) {
    LoseAttempt(job_id, "WORKER_LOST",
                absl::StrCat("worker ", workers_[worker_id].record.name, " was not heard of for ",
                             absl::FormatDuration(options_.lease)));
  }
}

void Controller::ScheduleNow() {
  schedule_wanted_ = false;
  const auto start = std::chrono::steady_clock::now();
  const std::size_t queued = CompleteSnapshot();
  Plan plan = options_.schedule(cluster_, now_);
  const std::size_t waiting = cluster_.waiting.size();
  cluster_.waiting.resize(queued);
  const bool more = plan.look_again <= now_;
  ApplyPlan(std::move(plan));
  counters_.schedules += 1;
  counters_.schedule_microseconds += std::chrono::duration_cast<std::chrono::microseconds>(
                                         std::chrono::steady_clock::now() - start)
                                         .count();
  schedule_not_before_ = waiting < kUnhurriedFrom || more
                             ? absl::InfinitePast()
                             : now_ + static_cast<double>(waiting) * kPausePerWaitingJob;
}

void Controller::ApplyPlan(Plan plan) {
  if (plan.snapshot_version != version_ && !Planted(PlantedBug::kStalePlanApplied)) {
    schedule_wanted_ = true;  // the world has changed since: plan again
    return;
  }
  for (const Start& start : plan.starts) ApplyStart(start);
  for (const PreflightStart& start : plan.preflights) {
    preflights_[start.job_id] =
        Preflight{start.worker_id, workers_.at(start.worker_id).session, now_ + options_.lease};
    next_expiry_ = std::min(next_expiry_, now_ + options_.lease);
    AfterCommit([this, job_id = start.job_id](const absl::Status& status) {
      if (status.ok()) SendAssignment(job_id, 0);
    });
  }
  for (const Preemption& preemption : plan.preemptions) {
    spdlog::info("job {} makes room for job {}", preemption.job_id.value(),
                 preemption.for_job_id.value());
    (void)Apply(preemption.job_id, PreemptRequested{"PREEMPTED"});
    counters_.preemptions += 1;
  }
  look_again_ = plan.look_again;
  schedule_wanted_ = false;  // what was just done needs no other look
  auto view = std::make_shared<WaitingView>(std::move(plan.waiting));
  absl::MutexLock lock(&view_mutex_);
  std::swap(waiting_view_, view);
}

void Controller::ApplyStart(const Start& start) {
  const JobRecord* job = FindJob(start.job_id);
  if (job == nullptr) {
    spdlog::error("a plan starts job {}, which has ended", start.job_id.value());
    return;
  }
  const absl::Time since =
      job->attempts.empty() ? job->definition->created : job->attempts.back().finished;
  Placed placed{{}, MakeRandomId("lease-")};
  int first_rank = 0;
  for (const StartPart& part : start.parts) {
    if (Planted(PlantedBug::kGangHalfPlaced) && !placed.members.empty()) break;
    const WorkerState& worker = workers_.at(part.worker_id);
    placed.members.push_back(
        GangMember{part.worker_id, worker.record.name, part.device_ids, first_rank});
    first_rank += static_cast<int>(part.device_ids.size());
    for (const SchedulableDevice& device : worker.offer->devices) {
      if (placed.device_class.empty() && device.device_id == part.device_ids.front()) {
        placed.device_class = device.sort->device_class;
      }
    }
  }
  if (const absl::Status status = Apply(start.job_id, std::move(placed)); !status.ok()) {
    spdlog::error("a plan does not fit: {}", status.ToString());
    return;
  }
  counters_.placements += 1;
  counters_.queue_wait_microseconds += absl::ToInt64Microseconds(now_ - since);
}

void Controller::SendAssignment(const JobId& job_id, std::int32_t attempt) {
  const JobRecord* job = FindJob(job_id);
  if (job == nullptr || job->inputs == nullptr) return;
  if (attempt == 0) {
    const auto it = preflights_.find(job_id);
    if (it != preflights_.end()) SendPart(*job, 0, workers_.at(it->second.worker_id));
    return;
  }
  const auto it = leases_.find(job_id);
  if (it == leases_.end() || it->second.attempt != attempt || IsTerminal(job->state)) return;
  for (const auto& [worker_id, expires] : it->second.expires) {
    SendPart(*job, attempt, workers_.at(worker_id));
  }
}

// A worker that is away says what it holds when it comes back: what was not sent is then lost and
// placed again.
void Controller::SendPart(const JobRecord& job, std::int32_t attempt, const WorkerState& worker) {
  absl::StatusOr<AssignMessage> message = BuildAssignment(
      job, attempt == 0 ? WorkKind::kPreflight : WorkKind::kTrain, worker.record, options_.version);
  if (!message.ok()) {
    // A spec that an older version took and this one refuses.
    PostAlways([this, job_id = job.id(), attempt, why = std::string(message.status().message())] {
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
