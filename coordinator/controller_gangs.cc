// The controller's part about gangs over several workers: where their ranks meet or what they
// exchange, and how they end.
//
// A gang ends as one. When it falls apart, several of its workers tell of it at about the same
// time: one perhaps of the cause, the others only that they lost it. The cause is waited for, but
// not for long.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/assignment.h"
#include "coordinator/controller.h"

namespace offshoot {
namespace {

// The worker of rank 0 uploads its newest checkpoint before it says that the attempt ended.
constexpr absl::Duration kWaitForLeader = absl::Seconds(6);
// It has ended; whoever knows more will say so at once.
constexpr absl::Duration kWaitForCause = absl::Seconds(2);

// Stopping, placing and loading again cost time: an attempt is left alone for the first, and the
// job must have at least so much left.
constexpr absl::Duration kGrowAfter = absl::Seconds(30);
constexpr int kWorthGrowingSeconds = 60;

// Ranks are at most one round apart.
constexpr std::size_t kKeptRounds = 2;

constexpr absl::string_view kRankLost = "RANK_LOST";

// What a worker says of a gang that another one broke up, or that it leaves in peace.
bool WaitsForMore(absl::string_view reason_code) {
  return reason_code == kRankLost || reason_code == "WORKER_LEAVING" ||
         reason_code == "COORDINATOR_UNREACHABLE";
}

}  // namespace

void Controller::ApplyListening(const JobId& job_id, const ListeningReport& listening) {
  JobRecord* job = FindJob(job_id);
  AttemptRecord& attempt = job->attempts.back();
  attempt.meet_address = listening.address;
  attempt.meet_port = listening.port;
  AfterCommit([this, job_id, number = attempt.number](const absl::Status& status) {
    const JobRecord* job = FindJob(job_id);
    if (!status.ok() || job == nullptr || job->attempt_number() != number) return;
    for (const GangMember& member : job->attempts.back().members) {
      SendMeetingPlace(*job, workers_.at(member.worker_id));
    }
  });
}

void Controller::SendMeetingPlace(const JobRecord& job, const WorkerState& worker) {
  if (!job.has_open_attempt()) return;
  const AttemptRecord& attempt = job.attempts.back();
  const GangMember* member = attempt.MemberOn(worker.record.worker_id);
  if (attempt.meet_port == 0 || member == nullptr || member == &attempt.leader()) return;
  Send(worker.session,
       MeetAtMessage{job.id(), attempt.number, attempt.meet_address, attempt.meet_port});
}

void Controller::Contribute(SessionId session, ContributionInfo contribution, Done done) {
  PostAlways(
      [this, session, contribution = std::move(contribution), done = std::move(done)]() mutable {
        DoContribute(session, contribution);
        AfterCommit([done = std::move(done)](const absl::Status&) { done(); });
      });
}

void Controller::DoContribute(SessionId session, const ContributionInfo& contribution) {
  const WorkerState* worker = WorkerOf(session);
  if (worker == nullptr) return;
  const auto lease = leases_.find(contribution.job_id);
  if (lease == leases_.end() || lease->second.attempt != contribution.attempt ||
      !lease->second.expires.contains(worker->record.worker_id)) {
    Send(session, StopMessage{contribution.job_id, contribution.attempt, false, "FENCED"});
    return;
  }
  const AttemptRecord& attempt = jobs_.at(contribution.job_id).attempts.back();
  const GangMember& member = *attempt.MemberOn(worker->record.worker_id);
  const int rank = contribution.rank - member.first_rank;
  if (rank < 0 || rank >= static_cast<int>(member.devices.size())) return;  // not one of its ranks
  auto& rounds = lease->second.contributions[contribution.rank];
  if (const auto known = rounds.find(contribution.round); known != rounds.end()) {
    // Said again after a break. What others may have summed already stays what it was.
    if (known->second == contribution.file) Send(session, contribution);
    return;
  }
  if (rounds.size() == kKeptRounds && contribution.round < rounds.begin()->first) {
    return;  // all have read it
  }
  const std::optional<std::int64_t> size = artifacts_.Find(contribution.file.digest);
  if (!size || *size != contribution.file.size_bytes) {
    spdlog::warn("rank {} of {} has nothing for round {}: {} was not uploaded", contribution.rank,
                 contribution.job_id.value(), contribution.round, contribution.file.digest);
    return;
  }
  rounds[contribution.round] = contribution.file;
  while (rounds.size() > kKeptRounds) {
    collectable_.emplace_back(rounds.begin()->second.digest, now_ + kCollectDelay);
    rounds.erase(rounds.begin());
  }
  for (const GangMember& other : attempt.members) {
    if (!other.ended) Send(workers_.at(other.worker_id).session, contribution);
  }
}

void Controller::SendContributions(const JobId& job_id, const WorkerState& worker) {
  const Lease& lease = leases_.at(job_id);
  for (const auto& [rank, rounds] : lease.contributions) {
    for (const auto& [round, file] : rounds) {
      Send(worker.session, ContributionInfo{job_id, lease.attempt, rank, round, file});
    }
  }
}

void Controller::LetContributionsGo(Lease& lease) {
  for (const auto& [rank, rounds] : lease.contributions) {
    for (const auto& [round, file] : rounds) {
      collectable_.emplace_back(file.digest, now_ + kCollectDelay);
    }
  }
  lease.contributions.clear();
}

// Of a worker that does not lead only its end counts: one that was asked for is the leader's to
// tell, any other ends the gang.
void Controller::ApplyMemberReport(AttemptReport report, SessionId session,
                                   const WorkerId& worker_id) {
  Acknowledge(session, report, false);
  auto* ended = std::get_if<AttemptEnded>(&report.event);
  if (ended == nullptr) return;
  schedule_wanted_ = true;
  const AttemptRecord& attempt = FindJob(report.job_id)->attempts.back();
  const GangMember& member = *attempt.MemberOn(worker_id);
  if (!member.left) return;
  ended->culprit = member.worker_name;
  ended->message = absl::StrCat("worker ", ended->culprit, ": ", ended->message);
  ended->last_step = std::max(ended->last_step, outputs_.LastStep(report.job_id, report.attempt));
  EndGang(report.job_id, worker_id, std::move(*ended));
}

void Controller::EndGang(const JobId& job_id, const WorkerId& worker_id, AttemptEnded event) {
  const JobRecord* job = FindJob(job_id);
  const AttemptRecord& attempt = job->attempts.back();
  const bool leads = worker_id == attempt.leader().worker_id;
  // A gang that was told to stop and did: each of its workers may have heard it first.
  if (event.reason_code == kRankLost && job->stop_intent != StopIntent::kNone) {
    event.reason_code = "STOPPED";
  }
  const bool waits = WaitsForMore(event.reason_code);
  const auto [pending, fresh] = gang_ends_.try_emplace(
      job_id, GangEnd{attempt.number, event, now_ + (leads ? kWaitForCause : kWaitForLeader)});
  GangEnd& end = pending->second;
  if (!fresh) {
    if (!waits || end.event.reason_code == kRankLost) end.event = std::move(event);
    if (leads) end.deadline = std::min(end.deadline, now_ + kWaitForCause);
  }
  const bool leader_is_over =
      attempt.leader().ended || workers_.at(attempt.leader().worker_id).session == 0;
  const bool somebody_is_away =
      std::any_of(attempt.members.begin(), attempt.members.end(), [this](const auto& member) {
        return !member.ended && workers_.at(member.worker_id).session == 0;
      });
  const bool all_ended = std::all_of(attempt.members.begin(), attempt.members.end(),
                                     [](const GangMember& member) { return member.ended; });
  const bool cause_is_known = end.event.reason_code != kRankLost || somebody_is_away || all_ended;
  if (!waits || (leader_is_over && cause_is_known)) {
    FinishGang(job_id);
  } else {
    next_expiry_ = std::min(next_expiry_, end.deadline);
  }
}

// A worker said what ends the gang, and this process was gone before that was written: nobody says
// it again, and ranks that do not meet do not notice. The other workers have a lease's time to come
// back and say what they know.
void Controller::RecoverGangEnd(const JobRecord& job) {
  if (!job.has_open_attempt()) return;
  const AttemptRecord& attempt = job.attempts.back();
  const bool falls_apart =
      attempt.leader().ended || std::any_of(attempt.members.begin(), attempt.members.end(),
                                            [](const GangMember& member) { return member.left; });
  if (attempt.members.size() < 2 || !falls_apart) return;
  AttemptEnded event;
  event.reason_code = job.stop_intent == StopIntent::kNone ? std::string(kRankLost) : "STOPPED";
  event.message = "one of its workers ended its part just before the coordinator was restarted";
  event.retryable = true;
  event.last_step = outputs_.LastStep(job.id(), attempt.number);
  const absl::Time deadline = now_ + options_.lease;
  gang_ends_[job.id()] = GangEnd{attempt.number, std::move(event), deadline};
  next_expiry_ = std::min(next_expiry_, deadline);
}

void Controller::FinishGang(const JobId& job_id) {
  const auto pending = gang_ends_.find(job_id);
  if (pending == gang_ends_.end()) return;
  const GangEnd end = std::move(pending->second);
  gang_ends_.erase(pending);
  const JobRecord* job = FindJob(job_id);
  if (job == nullptr || !job->has_open_attempt() || job->attempt_number() != end.attempt) return;
  const AttemptRecord attempt = job->attempts.back();
  if (end.event.reason_code == kRankLost) {
    for (const GangMember& member : attempt.members) {
      if (member.ended || workers_.at(member.worker_id).session != 0) continue;
      const auto last_rank = member.first_rank + static_cast<int>(member.devices.size()) - 1;
      LoseAttempt(job_id, "WORKER_LOST",
                  absl::StrCat("worker ", member.worker_name, " went away with rank",
                               member.devices.size() > 1 ? "s " : " ", member.first_rank,
                               last_rank > member.first_rank ? absl::StrCat(" to ", last_rank) : "",
                               "; the gang is placed anew"));
      return;
    }
  }
  (void)Apply(job_id, end.event);
  Fence(job_id, attempt, WorkerId());
}

// Its session has just ended: gangs that fell apart wait for no word from it.
void Controller::FinishGangsWithout(const WorkerState& worker) {
  const std::set<JobId> leased = worker.leased;
  for (const JobId& job_id : leased) {
    const auto pending = gang_ends_.find(job_id);
    if (pending == gang_ends_.end()) continue;
    const AttemptRecord& attempt = jobs_.at(job_id).attempts.back();
    if (attempt.leader().ended || attempt.leader().worker_id == worker.record.worker_id) {
      FinishGang(job_id);
    }
  }
}

void Controller::HandleGangTimers() {
  std::vector<JobId> due;
  for (const auto& [job_id, end] : gang_ends_) {
    if (end.deadline <= now_) {
      due.push_back(job_id);
    } else {
      next_expiry_ = std::min(next_expiry_, end.deadline);
    }
  }
  for (const JobId& job_id : due) FinishGang(job_id);
}

// A gang with fewer ranks than it may have, just after a checkpoint: if it would be given more,
// were it waiting now, it is stopped and placed anew. Whoever waits comes first.
void Controller::GrowIfPossible(const JobId& job_id) {
  const JobRecord* job = FindJob(job_id);
  if (job == nullptr || !job->has_open_attempt() || job->state != JobState::kRunning ||
      job->stop_intent != StopIntent::kNone || !waiting_index_.empty()) {
    return;
  }
  const AttemptRecord& attempt = job->attempts.back();
  const JobRequirements& wanted = job->definition->requirements;
  if (attempt.world_size() >= std::max(wanted.ranks, wanted.max_ranks) ||
      now_ - attempt.started < kGrowAfter) {
    return;
  }
  const absl::StatusOr<std::shared_ptr<const JobSpec>> spec = SpecOf(*job->definition);
  if (!spec.ok() || (*spec)->reproducible) return;
  {
    absl::MutexLock lock(&view_mutex_);
    const auto progress = progress_.find(job_id);
    if (progress != progress_.end() && progress->second.total_steps > 0 &&
        progress->second.estimated_seconds_left < kWorthGrowingSeconds) {
      return;
    }
  }
  cluster_.waiting.resize(CompleteSnapshot());
  ClusterSnapshot what_if = cluster_;
  std::erase_if(what_if.running,
                [&job_id](const RunningJob& running) { return running.job_id == job_id; });
  WaitingJob& waiting = what_if.waiting.emplace_back();
  waiting.job_id = job_id;
  waiting.job_class = ClassOf(*job->definition, job->memory.get());
  waiting.created = job->definition->created;
  waiting.avoid = job->WorkersThatHung();
  const Plan plan = Schedule(what_if, now_);
  for (const Start& start : plan.starts) {
    if (start.job_id != job_id) continue;
    int ranks = 0;
    for (const StartPart& part : start.parts) ranks += static_cast<int>(part.device_ids.size());
    if (ranks <= attempt.world_size()) return;
    spdlog::info("job {} grows from {} to {} ranks", job_id.value(), attempt.world_size(), ranks);
    (void)Apply(job_id, PreemptRequested{"GROWING"});
    return;
  }
}

}  // namespace offshoot
