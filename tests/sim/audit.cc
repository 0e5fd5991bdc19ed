#include "tests/sim/audit.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace offshoot::sim {
namespace {

bool IsLive(const JobRecord& job) { return !IsTerminal(job.state) || job.has_open_attempt(); }

}  // namespace

void Audit::Fail(const JobId& job_id, const std::string& what) {
  if (violation_.empty()) violation_ = absl::StrCat("job ", job_id.value(), ": ", what);
}

const JobRecord* Audit::Find(const JobId& job_id) const {
  const auto it = jobs_.find(job_id.value());
  return it == jobs_.end() ? nullptr : &it->second;
}

void Audit::Examine(const StoreWrite& write, absl::Time now) {
  now_ = now;
  for (const JobRecord& job : write.new_jobs) {
    const auto [it, is_new] = jobs_.try_emplace(job.id().value());
    if (!is_new) Fail(job.id(), "is made a second time");
    it->second.definition = job.definition;
    ++live_;
  }
  ExamineEvents(write.events);
  // Of one transaction only the end is seen: devices are freed before they are taken.
  for (const auto* jobs : {&write.new_jobs, &write.jobs}) {
    for (const JobRecord& job : *jobs) {
      const JobRecord* before = Find(job.id());
      if (before == nullptr) return Fail(job.id(), "changes and was never made");
      Release(*before);
    }
  }
  for (const auto* jobs : {&write.new_jobs, &write.jobs}) {
    for (const JobRecord& job : *jobs) {
      JobRecord& kept = jobs_[job.id().value()];
      ExamineJob(kept, job);
      live_ += (IsLive(job) ? 1 : 0) - (IsLive(kept) ? 1 : 0);
      const bool placed = job.attempts.size() > kept.attempts.size();
      kept = job;
      Hold(job);
      if (placed) ExamineLimits(job);
    }
  }
  for (const DerivativeRecord& derivative : write.derivatives) {
    if (!derivatives_.insert(derivative.job_id).second) {
      Fail(derivative.job_id, "is published a second time");
    }
    const JobRecord* job = Find(derivative.job_id);
    if (job == nullptr || job->state != JobState::kSucceeded) {
      Fail(derivative.job_id, "is published but has not succeeded");
    }
  }
  for (const StoredEffect& effect : write.new_effects) {
    if (!effects_.try_emplace(effect.effect_id, effect.effect).second) {
      Fail(effect.effect.job_id, "an effect's number is used a second time");
    }
  }
  for (const std::int64_t effect_id : write.done_effects) effects_.erase(effect_id);
}

void Audit::ExamineEvents(const std::vector<JobEventRecord>& events) {
  for (const JobEventRecord& event : events) {
    std::int64_t& last = sequences_[event.job_id.value()];
    if (event.sequence != last + 1) {
      Fail(event.job_id, absl::StrCat("event ", event.sequence, " follows event ", last));
    }
    last = event.sequence;
  }
}

void Audit::ExamineJob(const JobRecord& before, const JobRecord& job) {
  if (before.last_sequence > 0 && IsTerminal(before.state) && job.state != before.state) {
    Fail(job.id(),
         absl::StrCat("was ", JobStateName(before.state), " and is ", JobStateName(job.state)));
  }
  if (IsTerminal(job.state) && job.state != JobState::kSucceeded &&
      (job.message.empty() || job.reason_code.empty())) {
    Fail(job.id(), "ended without a reason");
  }
  ExamineAttempts(before, job);
  ExamineProgress(before, job);
}

void Audit::ExamineAttempts(const JobRecord& before, const JobRecord& job) {
  if (job.attempts.size() < before.attempts.size()) return Fail(job.id(), "forgot an attempt");
  for (std::size_t i = 0; i < job.attempts.size(); ++i) {
    const AttemptRecord& attempt = job.attempts[i];
    const bool is_last = i + 1 == job.attempts.size();
    if (attempt.number != static_cast<int>(i) + 1) Fail(job.id(), "attempts are not dense");
    if (attempt.open && !is_last) Fail(job.id(), "an old attempt is open");
    if (i >= before.attempts.size()) {
      if (i > before.attempts.size()) Fail(job.id(), "two attempts are placed at once");
      ExaminePlacement(before, job);
      continue;
    }
    const AttemptRecord& was = before.attempts[i];
    if (!was.open && !(was == attempt)) {
      Fail(job.id(), absl::StrCat("attempt ", attempt.number, " has ended and changes"));
    }
    if (was.open && attempt.members.size() != was.members.size()) {
      Fail(job.id(), absl::StrCat("attempt ", attempt.number, " has other workers than before"));
    }
    for (std::size_t m = 0; was.open && m < was.members.size(); ++m) {
      if (attempt.members[m].acknowledged_sequence < was.members[m].acknowledged_sequence) {
        Fail(job.id(), absl::StrCat("attempt ", attempt.number, ": an event of ",
                                    was.members[m].worker_id.value(), " counts a second time"));
      }
    }
  }
}

void Audit::ExaminePlacement(const JobRecord& before, const JobRecord& job) {
  ++attempts_;
  const AttemptRecord& attempt = job.attempts.back();
  const JobRequirements& wanted = job.definition->requirements;
  const int fewest = wanted.min_ranks > 0 ? wanted.min_ranks : wanted.ranks;
  const int ranks = attempt.world_size();
  if (ranks < fewest || ranks > std::max(wanted.ranks, wanted.max_ranks)) {
    Fail(job.id(),
         absl::StrCat("attempt ", attempt.number, " has ", ranks, " ranks of ", wanted.ranks));
  }
  int next_rank = 0;
  for (const GangMember& member : attempt.members) {
    if (member.first_rank != next_rank) Fail(job.id(), "ranks are not dense");
    next_rank += static_cast<int>(member.devices.size());
  }
  if (before.has_open_attempt() && before.attempts.back().number == attempt.number) return;
  placed_from_[job.id().value()] = job.checkpoint ? job.checkpoint->step : 0;
  const bool reproducible = job.definition->spec != nullptr && job.definition->spec->reproducible;
  if (reproducible && job.checkpoint && !before.attempts.empty() &&
      before.attempts.back().device_class != attempt.device_class) {
    Fail(job.id(), "goes on with other devices although it is to be reproducible");
  }
}

void Audit::ExamineProgress(const JobRecord& before, const JobRecord& job) {
  // In one transaction an attempt may write, end, and the next one be placed.
  const auto is_current = [&](std::int32_t attempt) {
    return before.has_open_attempt() && attempt == before.attempt_number();
  };
  if (before.checkpoint && !job.checkpoint) return Fail(job.id(), "lost its checkpoint");
  if (job.checkpoint && !(before.checkpoint == job.checkpoint)) {
    if (before.checkpoint && job.checkpoint->step < before.checkpoint->step) {
      Fail(job.id(), "went back to an older checkpoint");
    }
    if (!is_current(job.checkpoint->attempt)) {
      Fail(job.id(), absl::StrCat("takes a checkpoint of attempt ", job.checkpoint->attempt,
                                  ", which is not the one that runs"));
    }
  }
  if (job.result && !(before.result == job.result) && !is_current(job.result->attempt)) {
    Fail(job.id(), absl::StrCat("takes a result of attempt ", job.result->attempt,
                                ", which is not the one that runs"));
  }
  if (workers_lie_ || job.attempts.empty() || before.attempts.size() != job.attempts.size()) return;
  const std::int64_t first = job.attempts.back().first_step;
  if (first != 0 && before.attempts.back().first_step == 0 &&
      first != placed_from_[job.id().value()] + 1) {
    Fail(job.id(), absl::StrCat("goes on with step ", first, " after the checkpoint of step ",
                                placed_from_[job.id().value()]));
  }
}

void Audit::Accrue(const std::string& team) {
  Use& use = use_[team];
  if (use.as_of != absl::InfinitePast() && now_ > use.as_of) {
    const double rate = std::log(2) / absl::ToDoubleSeconds(policy_.usage_half_life);
    const double kept = std::exp(-rate * absl::ToDoubleSeconds(now_ - use.as_of));
    use.device_seconds = use.device_seconds * kept + teams_[team].devices * (1 - kept) / rate;
  }
  use.as_of = now_;
}

void Audit::Release(const JobRecord& job) {
  if (job.definition == nullptr || !job.has_open_attempt()) return;
  Accrue(job.definition->team);
  Held& team = teams_[job.definition->team];
  Held& queue = queues_[job.definition->queue];
  team.jobs -= 1;
  queue.jobs -= 1;
  for (const GangMember& member : job.attempts.back().members) {
    if (member.ended) continue;
    for (const std::string& device : member.devices) {
      const auto it = devices_.find(absl::StrCat(member.worker_id.value(), " ", device));
      if (it == devices_.end() || !(it->second == job.id())) continue;
      devices_.erase(it);
      team.devices -= 1;
      queue.devices -= 1;
    }
  }
}

void Audit::Hold(const JobRecord& job) {
  if (!job.has_open_attempt()) return;
  Accrue(job.definition->team);
  Held& team = teams_[job.definition->team];
  Held& queue = queues_[job.definition->queue];
  team.jobs += 1;
  queue.jobs += 1;
  for (const GangMember& member : job.attempts.back().members) {
    if (member.ended) continue;
    for (const std::string& device : member.devices) {
      const auto [it, is_new] =
          devices_.try_emplace(absl::StrCat(member.worker_id.value(), " ", device), job.id());
      if (!is_new) {
        Fail(job.id(), absl::StrCat("is given ", member.worker_id.value(), " ", device,
                                    ", which is job ", it->second.value(), "'s"));
        continue;
      }
      team.devices += 1;
      queue.devices += 1;
    }
  }
}

void Audit::ExamineLimits(const JobRecord& job) {
  const auto examine = [&](const char* what, const std::string& name, const Held& held,
                           const ShareLimits& limits) {
    if ((limits.max_devices > 0 && held.devices > limits.max_devices) ||
        (limits.max_jobs > 0 && held.jobs > limits.max_jobs)) {
      Fail(job.id(),
           absl::StrCat("with it ", what, " ", name, " has ", held.jobs, " jobs on ", held.devices,
                        " devices and may have ", limits.max_jobs, " on ", limits.max_devices));
    }
  };
  const JobDefinition& definition = *job.definition;
  examine("team", definition.team, teams_[definition.team], policy_.TeamOf(definition.team).limits);
  examine("queue", definition.queue, queues_[definition.queue],
          policy_.QueueOf(definition.queue).limits);
}

void Audit::ExamineLoad(const LoadedState& state) {
  int live = 0;
  for (const JobRecord& job : state.jobs) {
    const JobRecord* kept = Find(job.id());
    ++live;
    if (kept == nullptr || kept->state != job.state || kept->attempts != job.attempts ||
        kept->checkpoint != job.checkpoint || kept->result != job.result ||
        kept->last_sequence != job.last_sequence || kept->stop_intent != job.stop_intent ||
        kept->failures != job.failures || kept->preflighted != job.preflighted) {
      Fail(job.id(), "is read back otherwise than it was written");
    }
  }
  if (live != live_) {
    Fail(JobId("*"), absl::StrCat(live, " live jobs are read back, ", live_, " were written"));
  }
  if (state.effects.size() != effects_.size() ||
      !std::all_of(state.effects.begin(), state.effects.end(), [this](const StoredEffect& effect) {
        const auto it = effects_.find(effect.effect_id);
        return it != effects_.end() && it->second == effect.effect;
      })) {
    Fail(JobId("*"), absl::StrCat(state.effects.size(), " effects are read back, ", effects_.size(),
                                  " were written and not done"));
  }
}

int Audit::PriorityOf(const JobClass& job_class) const {
  return job_class.priority + policy_.QueueOf(job_class.queue).priority;
}

void Audit::ExaminePlan(const ClusterSnapshot& snapshot, const Plan& plan, absl::Time now) {
  now_ = now;
  for (const TeamUse& use : snapshot.use) {
    Accrue(use.team);
    // What changed between two writes is not known after a crash.
    constexpr double kSlack = 120;
    const double own = use_[use.team].device_seconds;
    if (std::abs(own - use.device_seconds) > kSlack + 0.05 * own) {
      Fail(JobId("*"), absl::StrCat("team ", use.team, " has used ", own,
                                    " device-seconds and is charged ", use.device_seconds));
    }
  }
  if (!plan.starts.empty()) ExamineOrder(snapshot, plan, now);
}

// For each job that starts: no team that has used less for its weight has a like job waiting that
// comes first of its own and could start as well.
void Audit::ExamineOrder(const ClusterSnapshot& snapshot, const Plan& plan, absl::Time now) {
  std::map<std::string, double> use;
  for (const TeamUse& each : snapshot.use) {
    use[each.team] = each.device_seconds / policy_.TeamOf(each.team).weight;
  }
  std::set<JobId> started;
  for (const Start& start : plan.starts) started.insert(start.job_id);
  std::map<std::string, const WaitingJob*> first;  // of each team
  std::vector<const WaitingJob*> starting;
  for (const WaitingJob& job : snapshot.waiting) {
    if (started.contains(job.job_id)) starting.push_back(&job);
    const WaitingJob*& best = first[job.job_class->team];
    const auto rank = [this](const WaitingJob& one) {
      return std::tuple(-PriorityOf(*one.job_class), one.created, one.job_id);
    };
    if (best == nullptr || rank(job) < rank(*best)) best = &job;
  }
  for (const auto& [team, job] : first) {
    const ShareLimits limits = policy_.TeamOf(team).limits;
    if (started.contains(job->job_id) || job->not_before > now || job->kind != WorkKind::kTrain ||
        !job->device_class.empty() || !job->avoid.empty() || limits.max_devices > 0 ||
        limits.max_jobs > 0 || job->job_class->queue != kDefaultName ||
        job->runtime_left != absl::InfiniteDuration()) {
      continue;
    }
    for (const WaitingJob* other : starting) {
      if (other->job_class->team == team || !other->device_class.empty() || !other->avoid.empty() ||
          other->runtime_left != absl::InfiniteDuration() ||
          !(other->job_class->requirements == job->job_class->requirements) ||
          PriorityOf(*other->job_class) != PriorityOf(*job->job_class)) {
        continue;
      }
      if (use[other->job_class->team] > use[team] + 1e-6) {
        Fail(other->job_id, absl::StrCat("starts before job ", job->job_id.value(), " of team ",
                                         team, ", which has used less for its weight"));
      }
    }
  }
}

void Audit::ExamineEnd(const std::set<JobId>& acknowledged, const std::set<JobId>& infeasible) {
  for (const JobId& job_id : acknowledged) {
    const JobRecord* job = Find(job_id);
    if (job == nullptr) {
      Fail(job_id, "was acknowledged and is not there");
    } else if (IsLive(*job) && !infeasible.contains(job_id)) {
      Fail(job_id, absl::StrCat("never ended: it is ", JobStateName(job->state), " ",
                                job->reason_code, ": ", job->message));
    }
  }
  for (const auto& [name, job] : jobs_) {
    if ((job.state == JobState::kSucceeded) != derivatives_.contains(job.id())) {
      Fail(job.id(), "success and derivative do not go together");
    }
  }
}

}  // namespace offshoot::sim
