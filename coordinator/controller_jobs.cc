// The controller's part that changes jobs: requests of users and transitions of the lifecycle.
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/controller.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxPastOwners = 4096;

absl::Status QueueIsFull() {
  return absl::ResourceExhaustedError(
      "the coordinator has more requests waiting than it takes in; try again in a moment");
}

// What preflight warned of, for the job's message.
std::string WarningsOf(const std::string& result_json) {
  const nlohmann::json result = nlohmann::json::parse(result_json, nullptr, false);
  std::vector<std::string> warnings;
  if (result.is_object() && result.contains("warnings") && result.at("warnings").is_array()) {
    for (const nlohmann::json& warning : result.at("warnings")) {
      if (warning.is_string() && warnings.size() < 8) warnings.push_back(warning);
    }
  }
  return warnings.empty() ? "checked"
                          : absl::StrCat("checked; warning: ", absl::StrJoin(warnings, "; "));
}

}  // namespace

JobRecord* Controller::FindJob(const JobId& job_id) {
  const auto it = jobs_.find(job_id);
  return it == jobs_.end() ? nullptr : &it->second;
}

void Controller::SubmitJob(JobDefinition definition, std::optional<ResolvedInputs> inputs,
                           JobCallback done) {
  auto shared = std::make_shared<JobCallback>(std::move(done));
  const bool posted = Post(
      [this, definition = std::move(definition), inputs = std::move(inputs), shared]() mutable {
        DoSubmit(std::move(definition), std::move(inputs), std::move(*shared));
      });
  if (!posted) (*shared)(QueueIsFull());
}

void Controller::DoSubmit(JobDefinition definition, std::optional<ResolvedInputs> inputs,
                          JobCallback done) {
  const std::string request_id = definition.request_id;
  auto answer_first = [&](const JobId& job_id, const std::string& spec_digest) {
    absl::StatusOr<JobId> result = job_id;
    if (spec_digest != definition.spec_digest) {
      result = absl::AlreadyExistsError(
          absl::StrCat("request_id '", request_id, "' was used for job ", job_id.value(),
                       " with another spec; choose another request_id"));
    }
    AfterCommit([done, result](const absl::Status& status) {
      done(status.ok() || !result.ok() ? result : absl::StatusOr<JobId>(status));
    });
  };
  if (!request_id.empty()) {
    if (const auto it = new_requests_.find(request_id); it != new_requests_.end()) {
      answer_first(it->second, jobs_.at(it->second).definition->spec_digest);
      return;
    }
    const absl::StatusOr<std::optional<JobRecord>> first = store_.FindRequest(request_id);
    if (!first.ok() || first->has_value()) {
      if (first.ok()) {
        answer_first((*first)->id(), (*first)->definition->spec_digest);
      } else {
        AfterCommit([done, status = first.status()](const absl::Status&) { done(status); });
      }
      return;
    }
    new_requests_[request_id] = definition.job_id;
  }
  const JobId job_id = definition.job_id;
  definition.created = now_;
  Transition transition = Submit(std::move(definition));
  // Inputs that are known already need nobody to look for them.
  if (inputs) transition.effects.clear();
  Take(std::move(transition), /*is_new=*/true);
  if (inputs) ApplyInputs(job_id, std::move(*inputs));
  counters_.submits += 1;
  AfterCommit([done, job_id](const absl::Status& status) {
    done(status.ok() ? absl::StatusOr<JobId>(job_id) : absl::StatusOr<JobId>(status));
  });
}

void Controller::ChangeJob(const JobId& job_id, LifecycleEvent event, StatusCallback done) {
  auto shared = std::make_shared<StatusCallback>(std::move(done));
  const bool posted = Post([this, job_id, event = std::move(event), shared] {
    DoChange(job_id, event, std::move(*shared));
  });
  if (!posted) (*shared)(QueueIsFull());
}

void Controller::DoChange(const JobId& job_id, const LifecycleEvent& event, StatusCallback done) {
  absl::Status result;
  if (FindJob(job_id) != nullptr) {
    result = Apply(job_id, event);
  } else if (absl::StatusOr<JobRecord> job = store_.GetJob(job_id); job.ok()) {
    // Terminal: the lifecycle says whether what is asked is already so or impossible.
    result = Next(*job, event, options_.lifecycle, now_).status();
  } else {
    result = job.status();
  }
  AfterCommit([done = std::move(done), result](const absl::Status& status) {
    done(result.ok() ? status : result);
  });
}

void Controller::ApplyInputs(const JobId& job_id, absl::StatusOr<ResolvedInputs> inputs) {
  if (FindJob(job_id) == nullptr) return;
  if (!inputs.ok()) {
    // The store's own trouble is not the job's fault, but the job cannot go on without its inputs.
    (void)Apply(job_id, InputsFailed{"INPUT_MISSING", std::string(inputs.status().message())});
    return;
  }
  for (FileDigest& learned : inputs->learned) write_.file_digests.push_back(std::move(learned));
  if (!Apply(job_id, InputsResolved{std::move(inputs->inputs)}).ok()) return;
  const JobRecord* job = FindJob(job_id);
  if (job->inputs != nullptr) write_.inputs.emplace_back(job_id, job->inputs);
  AnswerPreflightFromCache(job_id);
}

void Controller::AnswerPreflightFromCache(const JobId& job_id) {
  const JobRecord* job = FindJob(job_id);
  if (job == nullptr || job->inputs == nullptr || job->preflighted) return;
  // Others wait for the same answer: it is not there.
  const auto same = unchecked_.find(job->inputs->preflight_key);
  if (same != unchecked_.end() && same->second.size() > 1) return;
  const absl::StatusOr<std::optional<std::string>> answer =
      store_.FindPreflight(job->inputs->preflight_key);
  if (answer.ok() && answer->has_value()) {
    PassPreflight(job_id, **answer);
  }
}

void Controller::PassPreflight(const JobId& job_id, const std::string& result_json) {
  MemoryNeeds needs = ParseMemoryNeeds(result_json);
  (void)Apply(job_id, PreflightPassed{WarningsOf(result_json),
                                      needs == MemoryNeeds()
                                          ? nullptr
                                          : std::make_shared<const MemoryNeeds>(std::move(needs))});
}

absl::Status Controller::Apply(const JobId& job_id, const LifecycleEvent& event) {
  const JobRecord* job = FindJob(job_id);
  if (job == nullptr) return absl::NotFoundError(absl::StrCat("there is no job ", job_id.value()));
  absl::StatusOr<Transition> transition = Next(*job, event, options_.lifecycle, now_);
  if (!transition.ok()) return transition.status();
  if (transition->changed) Take(*std::move(transition), /*is_new=*/false);
  return absl::OkStatus();
}

void Controller::Take(Transition transition, bool is_new) {
  const JobId job_id = transition.job.id();
  JobRecord& kept = jobs_[job_id];
  if (is_new) {
    new_jobs_.insert(job_id);
  } else {
    NoteReferences(kept, transition.job);
    counters_.live_jobs[static_cast<std::size_t>(kept.state) - 1] -= 1;
  }
  counters_.live_jobs[static_cast<std::size_t>(transition.job.state) - 1] += 1;
  kept = std::move(transition.job);
  {
    absl::MutexLock lock(&view_mutex_);
    if (const auto it = progress_.find(job_id); it != progress_.end()) kept.progress = it->second;
  }
  changed_jobs_.insert(job_id);
  for (JobEventRecord& event : transition.events) {
    if (event.attempt > 0 || IsTerminal(event.state)) {
      spdlog::info("job {} is {} ({}, attempt {}, step {}){}{}", job_id.value(),
                   std::string(JobStateName(event.state)), event.type, event.attempt, event.step,
                   event.message.empty() ? "" : ": ", event.message);
    }
    write_.events.push_back(std::move(event));
  }
  for (Effect& effect : transition.effects) {
    write_.new_effects.push_back(StoredEffect{++last_effect_id_, std::move(effect)});
  }
  UpdateIndexes(kept);
}

void Controller::UpdateIndexes(const JobRecord& job) {
  const JobId& job_id = job.id();
  if (const auto check = preflights_.find(job_id);
      check != preflights_.end() && (IsTerminal(job.state) || job.preflighted)) {
    // Nobody waits for its answer any more.
    AfterCommit([this, session = check->second.session,
                 stop = StopMessage{job_id, 0, false, job.preflighted ? "FENCED" : "CANCELLED"}](
                    const absl::Status& status) {
      if (status.ok()) Send(session, stop);
    });
    preflights_.erase(check);
  }
  schedule_wanted_ = true;

  if (job.preflighted || IsTerminal(job.state)) failed_checks_.erase(job_id);

  const auto lease = leases_.find(job_id);
  if (!job.has_open_attempt()) {
    gang_ends_.erase(job_id);
    if (lease != leases_.end()) {
      for (const auto& [worker_id, expires] : lease->second.expires) {
        workers_[worker_id].leased.erase(job_id);
      }
      LetContributionsGo(lease->second);
      leases_.erase(lease);
    }
  } else if (lease == leases_.end() || lease->second.attempt != job.attempt_number()) {
    const AttemptRecord& attempt = job.attempts.back();
    Lease fresh;
    fresh.attempt = attempt.number;
    for (const GangMember& member : attempt.members) {
      if (member.ended) continue;
      fresh.expires[member.worker_id] = now_ + options_.lease;
      workers_[member.worker_id].leased.insert(job_id);
    }
    if (job.definition->max_runtime != absl::InfiniteDuration()) {
      absl::Duration used = absl::ZeroDuration();
      for (const AttemptRecord& other : job.attempts) {
        if (!other.open) used += other.finished - other.started;
      }
      fresh.runtime_ends = attempt.started + job.definition->max_runtime - used;
    }
    next_expiry_ = std::min({next_expiry_, now_ + options_.lease, fresh.runtime_ends});
    if (lease != leases_.end()) LetContributionsGo(lease->second);
    leases_[job_id] = std::move(fresh);
  }
  UpdateCluster(job);

  absl::MutexLock lock(&view_mutex_);
  if (!job.attempts.empty()) {
    output_owners_[job_id] =
        OutputOwner{job.attempt_number(), job.attempts.back().leader().worker_id};
  }
  if (IsTerminal(job.state) && !job.has_open_attempt()) {
    // The last log lines may come after the end: its owner is remembered for a while.
    progress_.erase(job_id);
    past_owners_.push_back(job_id);
    if (past_owners_.size() > kMaxPastOwners) {
      output_owners_.erase(past_owners_.front());
      past_owners_.pop_front();
    }
  }
}

void Controller::LoseAttempt(const JobId& job_id, absl::string_view reason_code,
                             absl::string_view message) {
  const JobRecord* job = FindJob(job_id);
  if (job == nullptr || !job->has_open_attempt()) return;
  const AttemptRecord attempt = job->attempts.back();
  (void)Apply(job_id, AttemptLost{std::string(reason_code), std::string(message),
                                  outputs_.LastStep(job_id, attempt.number)});
  Fence(job_id, attempt, WorkerId());
}

// Workers that can be reached free the devices before they are given anything else.
void Controller::Fence(const JobId& job_id, const AttemptRecord& attempt, const WorkerId& but_not) {
  for (const GangMember& member : attempt.members) {
    if (member.ended || member.worker_id == but_not) continue;
    AfterCommit(
        [this, session = workers_[member.worker_id].session,
         stop = StopMessage{job_id, attempt.number, false, "FENCED"}](const absl::Status& status) {
          if (status.ok()) Send(session, stop);
        });
  }
}

absl::Status Controller::CheckQueue(const std::string& queue) const {
  const SchedulingPolicy& policy = *options_.scheduling;
  if (policy.HasQueue(queue)) return absl::OkStatus();
  std::string names = kDefaultName;
  for (const auto& [name, unused] : policy.queues) {
    if (name != kDefaultName) absl::StrAppend(&names, ", ", name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("queue: '", queue, "' is not a queue of this coordinator; there is ", names));
}

JobOverlay Controller::Overlay(const JobId& job_id) const {
  JobOverlay overlay;
  std::shared_ptr<WaitingView> view;
  {
    absl::MutexLock lock(&view_mutex_);
    view = waiting_view_;
  }
  if (view != nullptr) overlay.waiting = view->Find(job_id);
  absl::MutexLock lock(&view_mutex_);
  if (const auto it = progress_.find(job_id); it != progress_.end()) overlay.progress = it->second;
  return overlay;
}

void Controller::RegisterBaseModel(BaseModelRecord model, std::vector<FileDigest> learned,
                                   StatusCallback done) {
  auto shared = std::make_shared<StatusCallback>(std::move(done));
  const bool posted =
      Post([this, model = std::move(model), learned = std::move(learned), shared]() mutable {
        absl::Status result;
        const absl::StatusOr<BaseModelRecord> first = store_.GetBaseModel(model.name);
        // What a team pushed, the team may push again.
        if (first.ok() &&
            (first->team != model.team || (model.team.empty() && first->digest != model.digest))) {
          result = absl::AlreadyExistsError(absl::StrCat("the name '", model.name,
                                                         "' belongs to other bytes (",
                                                         first->digest, "); choose another name"));
        } else if (!first.ok() && !absl::IsNotFound(first.status())) {
          result = first.status();
        } else {
          model.created = first.ok() ? first->created : now_;
          for (FileDigest& file : learned) write_.file_digests.push_back(std::move(file));
          References references{absl::StrCat("model:", model.name), {}};
          if (model.path.empty()) {
            for (const FileEntry& file : model.files) references.digests.push_back(file.digest);
          }
          write_.references.push_back(std::move(references));
          write_.base_models.push_back(std::move(model));
        }
        AfterCommit([shared, result](const absl::Status& status) {
          (*shared)(result.ok() ? status : result);
        });
      });
  if (!posted) (*shared)(QueueIsFull());
}

}  // namespace offshoot
