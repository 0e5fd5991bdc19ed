// The controller's part that listens to workers: registration, heartbeats, reports, fencing.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/planted_bugs.h"
#include "coordinator/controller.h"

namespace offshoot {

SessionId Controller::OpenSession(std::shared_ptr<SessionPeer> peer) {
  const SessionId session = next_session_.fetch_add(1);
  PostAlways([this, session, peer = std::move(peer)] { sessions_[session] = {peer, WorkerId()}; });
  return session;
}

void Controller::CloseSession(SessionId session) {
  PostAlways([this, session] { DoCloseSession(session); });
}

void Controller::Register(SessionId session, RegisterInfo info, Done done) {
  PostAlways([this, session, info = std::move(info), done = std::move(done)]() mutable {
    DoRegister(session, std::move(info));
    AfterCommit([done = std::move(done)](const absl::Status&) { done(); });
  });
}

void Controller::Heartbeat(SessionId session, std::vector<HeldAttemptInfo> held,
                           std::int64_t free_disk_bytes, Done done) {
  PostAlways(
      [this, session, held = std::move(held), free_disk_bytes, done = std::move(done)]() mutable {
        if (WorkerState* worker = WorkerOf(session); worker != nullptr) {
          worker->free_disk_bytes = free_disk_bytes;
        }
        DoHeartbeat(session, held);
        AfterCommit([done = std::move(done)](const absl::Status&) { done(); });
      });
}

void Controller::SetDeviceSpeeds(SessionId session, std::map<std::string, double> speeds) {
  PostAlways([this, session, speeds = std::move(speeds)] {
    WorkerState* worker = WorkerOf(session);
    if (worker == nullptr) return;
    WorkerRecord record = worker->record;
    for (DeviceRecord& device : record.devices) {
      const auto told = speeds.find(device.device_id);
      if (told == speeds.end() || !std::isfinite(told->second) || told->second <= 0) continue;
      device.speed = told->second;
    }
    if (record == worker->record) return;
    worker->record = std::move(record);
    write_.workers.push_back(worker->record);
    UpdateOffer(*worker);
    workers_changed_ = true;
    schedule_wanted_ = true;
  });
}

void Controller::Report(SessionId session, AttemptReport report, Done done) {
  PostAlways([this, session, report = std::move(report), done = std::move(done)]() mutable {
    DoReport(session, std::move(report));
    AfterCommit([done = std::move(done)](const absl::Status&) { done(); });
  });
}

Controller::WorkerState* Controller::WorkerOf(SessionId session) {
  const auto it = sessions_.find(session);
  if (it == sessions_.end() || it->second.worker_id.empty()) return nullptr;
  const auto worker = workers_.find(it->second.worker_id);
  return worker == workers_.end() || worker->second.session != session ? nullptr : &worker->second;
}

void Controller::Send(SessionId session, SessionMessage message) {
  const auto it = sessions_.find(session);
  if (it != sessions_.end()) it->second.peer->Send(std::move(message));
}

void Controller::DoCloseSession(SessionId session) {
  if (WorkerState* worker = WorkerOf(session); worker != nullptr) {
    worker->session = 0;
    workers_changed_ = true;
    schedule_wanted_ = true;
    FinishGangsWithout(*worker);
    // Checks that ran there are given to somebody else; its attempts live on until their lease
    // ends.
    std::erase_if(preflights_, [&](const auto& entry) { return entry.second.session == session; });
  }
  sessions_.erase(session);
  absl::MutexLock lock(&view_mutex_);
  session_workers_.erase(session);
}

void Controller::DoRegister(SessionId session, RegisterInfo info) {
  const auto it = sessions_.find(session);
  if (it == sessions_.end()) return;
  const std::shared_ptr<SessionPeer> peer = it->second.peer;
  if (info.protocol_version != kProtocolVersion) {
    peer->Close(absl::FailedPreconditionError(
        absl::StrCat("the worker speaks protocol ", info.protocol_version, ", this coordinator ",
                     kProtocolVersion, ": install the same version of Offshoot on both")));
    return;
  }
  const WorkerId worker_id = info.worker.worker_id;
  WorkerState& worker = workers_[worker_id];
  if (worker.session != 0 && worker.session != session) {
    if (const auto old = sessions_.find(worker.session); old != sessions_.end()) {
      old->second.peer->Close(absl::AbortedError("this worker has opened another session"));
    }
    DoCloseSession(worker.session);
  }
  it->second.worker_id = worker_id;
  info.worker.draining = worker.record.draining;
  if (!(worker.record == info.worker)) write_.workers.push_back(info.worker);
  worker.record = std::move(info.worker);
  worker.session = session;
  UpdateOffer(worker);
  workers_changed_ = true;
  schedule_wanted_ = true;
  {
    absl::MutexLock lock(&view_mutex_);
    session_workers_[session] = worker_id;
  }
  peer->Send(WelcomeMessage{options_.coordinator_id, options_.heartbeat_interval, options_.lease,
                            options_.unreachable_grace});
  // What the worker does not hold any more is lost at once: it says so itself.
  std::vector<JobId> lost;
  for (const JobId& job_id : worker.leased) {
    const Lease& lease = leases_.at(job_id);
    const AttemptRecord& attempt = jobs_.at(job_id).attempts.back();
    if (const GangMember* part = attempt.MemberOn(worker_id); part == nullptr || part->ended) {
      continue;
    }
    const bool held = std::any_of(info.held.begin(), info.held.end(), [&](const auto& other) {
      return other.job_id == job_id && other.attempt == lease.attempt;
    });
    if (!held) lost.push_back(job_id);
  }
  for (const JobId& job_id : lost) {
    LoseAttempt(job_id, "WORKER_RESTARTED",
                absl::StrCat("worker ", worker.record.name, " came back without this attempt"));
  }
  for (const HeldAttemptInfo& held : info.held) SkipWhatIsLost(worker_id, held);
  // Checks that began before go on here. A heartbeat proves nothing of the sort: the check's answer
  // may have come just before it.
  for (const HeldAttemptInfo& held : info.held) {
    const JobRecord* job = held.attempt == 0 ? FindJob(held.job_id) : nullptr;
    if (job != nullptr && job->state == JobState::kValidating && !job->preflighted) {
      preflights_[held.job_id] = Preflight{worker_id, session, now_ + options_.lease};
      next_expiry_ = std::min(next_expiry_, now_ + options_.lease);
    }
  }
  Reconcile(session, worker, info.held);
  // What was said while it was away.
  for (const JobId& job_id : worker.leased) {
    SendMeetingPlace(jobs_.at(job_id), worker);
    SendContributions(job_id, worker);
  }
}

void Controller::DoHeartbeat(SessionId session, const std::vector<HeldAttemptInfo>& held) {
  WorkerState* worker = WorkerOf(session);
  if (worker != nullptr) Reconcile(session, *worker, held);
}

// Events that a worker's full disk did not keep through a crash are not waited for.
void Controller::SkipWhatIsLost(const WorkerId& worker_id, const HeldAttemptInfo& held) {
  JobRecord* job = FindJob(held.job_id);
  if (job == nullptr || !job->has_open_attempt() || job->attempt_number() != held.attempt) return;
  GangMember* member = job->attempts.back().MemberOn(worker_id);
  if (member == nullptr || member->acknowledged_sequence + 1 >= held.next_sequence) return;
  member->acknowledged_sequence = held.next_sequence - 1;
  changed_jobs_.insert(held.job_id);
}

// Renews what is the worker's, and says again what it should have heard.
void Controller::Reconcile(SessionId session, WorkerState& worker,
                           const std::vector<HeldAttemptInfo>& held) {
  if (now_ - worker.last_seen >= options_.lease) schedule_wanted_ = true;  // it is back
  worker.last_seen = now_;
  for (const HeldAttemptInfo& attempt : held) {
    if (attempt.attempt == 0) {
      const JobRecord* job = FindJob(attempt.job_id);
      if (job == nullptr || job->state != JobState::kValidating || job->preflighted) {
        Send(session, StopMessage{attempt.job_id, 0, false, "FENCED"});
      } else if (const auto check = preflights_.find(attempt.job_id);
                 check != preflights_.end() && check->second.worker_id == worker.record.worker_id) {
        check->second.expires = now_ + options_.lease;
      }
      continue;
    }
    const auto lease = leases_.find(attempt.job_id);
    if (lease == leases_.end() || lease->second.attempt != attempt.attempt ||
        !lease->second.expires.contains(worker.record.worker_id)) {
      Send(session, StopMessage{attempt.job_id, attempt.attempt, false, "FENCED"});
      continue;
    }
    lease->second.expires[worker.record.worker_id] = now_ + options_.lease;
    const JobRecord& job = jobs_.at(attempt.job_id);
    if (IsTerminal(job.state) && job.state != JobState::kSucceeded) {
      Send(session, StopMessage{attempt.job_id, attempt.attempt, false,
                                job.state == JobState::kCancelled ? "CANCELLED" : "FENCED"});
    } else if (job.stop_intent != StopIntent::kNone) {
      Send(session, StopMessage{attempt.job_id, attempt.attempt, true,
                                job.stop_intent == StopIntent::kPause ? "PAUSED" : "PREEMPTED"});
    }
  }
}

void Controller::DoReport(SessionId session, AttemptReport report) {
  WorkerState* worker = WorkerOf(session);
  if (worker == nullptr) return;
  worker->last_seen = now_;
  if (report.attempt == 0) {
    DoPreflightReport(session, *worker, report);
  } else {
    DoAttemptReport(session, *worker, std::move(report));
  }
}

void Controller::Acknowledge(SessionId session, const AttemptReport& report, bool fenced) {
  if (fenced) counters_.fenced_reports += 1;
  // Only what is durable is acknowledged.
  AfterCommit(
      [this, session, ack = AckMessage{report.job_id, report.attempt, report.sequence, fenced}](
          const absl::Status& status) {
        if (status.ok()) Send(session, ack);
      });
}

void Controller::DoPreflightReport(SessionId session, const WorkerState& worker,
                                   const AttemptReport& report) {
  const auto running = preflights_.find(report.job_id);
  const auto* answer = std::get_if<PreflightReport>(&report.event);
  const bool expected = answer != nullptr && running != preflights_.end() &&
                        running->second.worker_id == worker.record.worker_id;
  Acknowledge(session, report, !expected);
  if (!expected) return;
  preflights_.erase(running);
  schedule_wanted_ = true;
  const JobRecord* job = FindJob(report.job_id);
  if (job == nullptr || job->inputs == nullptr) return;
  if (!answer->ok) {
    failed_checks_[report.job_id] = worker.record.worker_id;
    (void)Apply(report.job_id,
                PreflightFailed{answer->reason_code, answer->message, answer->retryable});
    return;
  }
  const std::string key = job->inputs->preflight_key;
  write_.preflights.push_back(PreflightAnswer{key, answer->result_json});
  // Everybody who waits for the same answer has it now.
  std::vector<JobId> answered;
  if (const auto same = unchecked_.find(key); same != unchecked_.end()) {
    answered.assign(same->second.begin(), same->second.end());
  }
  if (job->state == JobState::kPaused) answered.push_back(report.job_id);
  for (const JobId& job_id : answered) PassPreflight(job_id, answer->result_json);
}

void Controller::DoAttemptReport(SessionId session, WorkerState& worker, AttemptReport report) {
  // That an attempt ended which is over already is no news, but nothing to refuse either.
  const bool says_ended = std::holds_alternative<AttemptEnded>(report.event);
  JobRecord* job = FindJob(report.job_id);
  if (job == nullptr) {
    // Ended and forgotten: a repeat of what was heard is acknowledged, anything else refused.
    const absl::StatusOr<JobRecord> past = store_.GetJob(report.job_id);
    bool known = false;
    if (past.ok()) {
      for (const AttemptRecord& attempt : past->attempts) {
        const GangMember* member = attempt.MemberOn(worker.record.worker_id);
        known = known || (attempt.number == report.attempt && member != nullptr &&
                          (report.sequence <= member->acknowledged_sequence || says_ended));
      }
    }
    Acknowledge(session, report, !known);
    return;
  }
  const auto index = static_cast<std::size_t>(report.attempt - 1);
  const WorkerId worker_id = worker.record.worker_id;
  GangMember* member = report.attempt < 1 || index >= job->attempts.size()
                           ? nullptr
                           : job->attempts[index].MemberOn(worker_id);
  if (member == nullptr) {
    Acknowledge(session, report, true);
    return;
  }
  const AttemptRecord& attempt = job->attempts[index];
  // Its devices were free, and may be another's, from when it said that it ended.
  const bool is_over = !attempt.open || member->ended;
  const bool heard_before = report.sequence <= member->acknowledged_sequence;
  if (heard_before && !Planted(PlantedBug::kEventRepeated)) {
    Acknowledge(session, report, false);
    return;
  }
  if (is_over && !Planted(PlantedBug::kStaleAttemptCounted)) {
    Acknowledge(session, report, !says_ended);
    return;
  }
  if (!heard_before && report.sequence != member->acknowledged_sequence + 1) {
    // It comes again from the oldest that was not acknowledged when the worker has reconnected.
    spdlog::warn("worker {} sent event {} of attempt {} of {} after {}: a gap", worker.record.name,
                 report.sequence, report.attempt, report.job_id.value(),
                 member->acknowledged_sequence);
    sessions_.at(session).peer->Close(absl::AbortedError(absl::StrCat(
        "event ", member->acknowledged_sequence + 1, " of attempt ", report.attempt, " of job ",
        report.job_id.value(), " is missing; connect again and repeat it")));
    return;
  }
  member->acknowledged_sequence = report.sequence;
  changed_jobs_.insert(report.job_id);
  const auto lease = leases_.find(report.job_id);
  const bool leads = member == &attempt.leader();
  member->ended = says_ended;
  if (says_ended) {
    const std::string& reason_code = std::get<AttemptEnded>(report.event).reason_code;
    member->hung = reason_code == "RANK_HUNG";
    member->left = reason_code != "STOPPED" && reason_code != "FINISHED";
  }
  if (lease != leases_.end()) {
    if (says_ended && !leads) {
      // Its part is over: it owes no more heartbeats for it.
      lease->second.expires.erase(worker_id);
      worker.leased.erase(report.job_id);
    } else {
      lease->second.expires[worker_id] = now_ + options_.lease;
    }
  }
  // Its devices are free from here on, and what they were used for is written with that.
  if (says_ended && attempt.members.size() > 1) UpdateRunning(*job);
  if (leads) {
    ApplyReport(std::move(report), session);
  } else {
    ApplyMemberReport(std::move(report), session, worker_id);
  }
}

void Controller::ApplyReport(AttemptReport report, SessionId session) {
  const JobId job_id = report.job_id;
  Acknowledge(session, report, false);
  if (auto* checkpointed = std::get_if<Checkpointed>(&report.event)) {
    std::string missing;
    if (!artifacts_.HasAll(checkpointed->checkpoint.files, &missing)) {
      spdlog::warn("a checkpoint of {} does not count: its file {} was not uploaded",
                   job_id.value(), missing);
      return;
    }
    (void)Apply(job_id, std::move(*checkpointed));
    GrowIfPossible(job_id);
  } else if (auto* ended = std::get_if<AttemptEnded>(&report.event)) {
    ended->last_step = std::max(ended->last_step, outputs_.LastStep(job_id, report.attempt));
    const AttemptRecord& attempt = FindJob(job_id)->attempts.back();
    if (attempt.members.size() > 1) {
      EndGang(job_id, attempt.leader().worker_id, std::move(*ended));
    } else {
      (void)Apply(job_id, std::move(*ended));
    }
  } else if (const auto* listening = std::get_if<ListeningReport>(&report.event)) {
    ApplyListening(job_id, *listening);
  } else if (auto* started = std::get_if<Started>(&report.event)) {
    (void)Apply(job_id, *started);
  } else if (auto* publishing = std::get_if<PublishingBegun>(&report.event)) {
    (void)Apply(job_id, *publishing);
  } else if (auto* result = std::get_if<ResultUploaded>(&report.event)) {
    result->result.attempt = report.attempt;
    (void)Apply(job_id, std::move(*result));
  }
}

bool Controller::AcceptsOutput(SessionId session, const JobId& job_id, std::int32_t attempt) const {
  absl::MutexLock lock(&view_mutex_);
  const auto worker = session_workers_.find(session);
  const auto owner = output_owners_.find(job_id);
  return worker != session_workers_.end() && owner != output_owners_.end() &&
         owner->second.attempt == attempt && owner->second.worker_id == worker->second;
}

bool Controller::IsCurrentAttempt(const JobId& job_id, std::int32_t attempt) const {
  absl::MutexLock lock(&view_mutex_);
  const auto owner = output_owners_.find(job_id);
  return owner != output_owners_.end() && owner->second.attempt == attempt;
}

void Controller::SetProgress(const JobId& job_id, ProgressRecord progress) {
  absl::MutexLock lock(&view_mutex_);
  progress_[job_id] = std::move(progress);
}

WorkerStatus Controller::StatusOf(const WorkerState& worker) const {
  WorkerStatus status;
  status.record = worker.record;
  status.last_heartbeat = worker.last_seen;
  status.lost = worker.session == 0 && now_ - worker.last_seen >= options_.lease;
  status.running.assign(worker.leased.begin(), worker.leased.end());
  return status;
}

void Controller::ListWorkers(std::function<void(std::vector<WorkerStatus>)> done) {
  PostAlways([this, done = std::move(done)] {
    std::vector<WorkerStatus> list;
    for (const auto& [worker_id, worker] : workers_) list.push_back(StatusOf(worker));
    done(std::move(list));
  });
}

void Controller::SetDraining(const WorkerId& worker_id, bool draining, bool checkpoint_running,
                             std::function<void(absl::StatusOr<WorkerStatus>)> done) {
  PostAlways([this, worker_id, draining, checkpoint_running, done = std::move(done)] {
    const auto it = workers_.find(worker_id);
    if (it == workers_.end()) {
      done(absl::NotFoundError(absl::StrCat("there is no worker ", worker_id.value())));
      return;
    }
    it->second.record.draining = draining;
    write_.workers.push_back(it->second.record);
    workers_changed_ = true;
    schedule_wanted_ = true;
    if (draining && checkpoint_running) {
      const std::set<JobId> running = it->second.leased;
      for (const JobId& job_id : running) (void)Apply(job_id, PreemptRequested{"DRAINED"});
    }
    AfterCommit([done, status = StatusOf(it->second)](const absl::Status& committed) {
      done(committed.ok() ? absl::StatusOr<WorkerStatus>(status)
                          : absl::StatusOr<WorkerStatus>(committed));
    });
  });
}

}  // namespace offshoot
