#include "coordinator/store_memory.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace offshoot {

bool StoreWrite::empty() const {
  return new_jobs.empty() && jobs.empty() && inputs.empty() && events.empty() &&
         new_effects.empty() && done_effects.empty() && workers.empty() && preflights.empty() &&
         file_digests.empty() && base_models.empty() && derivatives.empty() && references.empty() &&
         team_use.empty();
}

absl::Status MemoryStore::Check(const StoreWrite& write) const {
  if (write.if_version && *write.if_version != version_) {
    return absl::AbortedError(
        absl::StrCat("the store is at version ", version_, ", not ", *write.if_version));
  }
  std::set<std::string> requests;
  for (const JobRecord& job : write.new_jobs) {
    const std::string& request = job.definition->request_id;
    if (jobs_.contains(job.id()) ||
        (!request.empty() && (requests_.contains(request) || !requests.insert(request).second))) {
      return absl::AlreadyExistsError(
          absl::StrCat("job ", job.id().value(), " or its request_id exists already"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::int64_t> MemoryStore::Commit(const StoreWrite& write) {
  absl::MutexLock lock(&mutex_);
  if (absl::Status status = Check(write); !status.ok()) return status;
  for (const JobRecord& job : write.new_jobs) {
    jobs_[job.id()] = job;
    if (!job.definition->request_id.empty()) requests_[job.definition->request_id] = job.id();
  }
  for (const JobRecord& job : write.jobs) jobs_[job.id()] = job;
  for (const auto& [job_id, inputs] : write.inputs) jobs_[job_id].inputs = inputs;
  for (const JobEventRecord& event : write.events) events_[event.job_id].push_back(event);
  for (const StoredEffect& effect : write.new_effects) {
    effects_[effect.effect_id] = effect.effect;
    last_effect_id_ = std::max(last_effect_id_, effect.effect_id);
  }
  for (std::int64_t effect_id : write.done_effects) effects_.erase(effect_id);
  for (const WorkerRecord& worker : write.workers) workers_[worker.worker_id] = worker;
  for (const PreflightAnswer& answer : write.preflights) {
    preflights_[answer.key] = answer.result_json;
  }
  for (const FileDigest& file : write.file_digests) file_digests_[file.identity.path] = file;
  for (const BaseModelRecord& model : write.base_models) base_models_[model.name] = model;
  for (const DerivativeRecord& derivative : write.derivatives) {
    const bool known = std::any_of(
        derivatives_.begin(), derivatives_.end(),
        [&](const auto& other) { return other.derivative_id == derivative.derivative_id; });
    if (!known) derivatives_.push_back(derivative);
  }
  for (const References& references : write.references) {
    references_[references.owner] = {references.digests.begin(), references.digests.end()};
  }
  for (const TeamUseRecord& use : write.team_use) team_use_[use.team] = use;
  return ++version_;
}

absl::StatusOr<LoadedState> MemoryStore::Load() {
  absl::MutexLock lock(&mutex_);
  LoadedState state;
  state.version = version_;
  state.last_effect_id = last_effect_id_;
  for (const auto& [id, job] : jobs_) {
    if (!IsTerminal(job.state) || job.has_open_attempt()) state.jobs.push_back(job);
  }
  for (const auto& [id, effect] : effects_) state.effects.push_back({id, effect});
  for (const auto& [id, worker] : workers_) state.workers.push_back(worker);
  for (const auto& [team, use] : team_use_) state.team_use.push_back(use);
  return state;
}

absl::StatusOr<JobRecord> MemoryStore::GetJob(const JobId& job_id) {
  absl::MutexLock lock(&mutex_);
  const auto it = jobs_.find(job_id);
  if (it == jobs_.end()) {
    return absl::NotFoundError(absl::StrCat("there is no job ", job_id.value()));
  }
  return it->second;
}

absl::StatusOr<std::optional<JobRecord>> MemoryStore::FindRequest(const std::string& request_id) {
  absl::MutexLock lock(&mutex_);
  const auto it = requests_.find(request_id);
  if (it == requests_.end()) return std::nullopt;
  return jobs_.at(it->second);
}

absl::StatusOr<std::vector<JobRecord>> MemoryStore::ListJobs(const JobFilter& filter) {
  absl::MutexLock lock(&mutex_);
  std::vector<JobRecord> found;
  for (auto it = jobs_.rbegin(); it != jobs_.rend(); ++it) {
    const JobRecord& job = it->second;
    if (static_cast<int>(found.size()) >= filter.limit) break;
    if (!filter.before.empty() && !(job.id() < filter.before)) continue;
    if (!filter.team.empty() && job.definition->team != filter.team) continue;
    if (!absl::StrContains(job.definition->name, filter.name_contains)) continue;
    if (!filter.states.empty() &&
        std::find(filter.states.begin(), filter.states.end(), job.state) == filter.states.end()) {
      continue;
    }
    found.push_back(job);
  }
  return found;
}

absl::StatusOr<std::vector<JobEventRecord>> MemoryStore::ListEvents(const JobId& job_id,
                                                                    std::int64_t from_sequence,
                                                                    int limit) {
  absl::MutexLock lock(&mutex_);
  std::vector<JobEventRecord> found;
  const auto it = events_.find(job_id);
  if (it == events_.end()) return found;
  for (const JobEventRecord& event : it->second) {
    if (static_cast<int>(found.size()) >= limit) break;
    if (event.sequence >= from_sequence) found.push_back(event);
  }
  return found;
}

absl::StatusOr<std::optional<std::string>> MemoryStore::FindPreflight(const std::string& key) {
  absl::MutexLock lock(&mutex_);
  const auto it = preflights_.find(key);
  if (it == preflights_.end()) return std::nullopt;
  return it->second;
}

absl::StatusOr<std::optional<std::string>> MemoryStore::FindFileDigest(
    const FileIdentity& identity) {
  absl::MutexLock lock(&mutex_);
  const auto it = file_digests_.find(identity.path);
  if (it == file_digests_.end() || it->second.identity != identity) return std::nullopt;
  return it->second.digest;
}

absl::StatusOr<std::vector<FileIdentity>> MemoryStore::FindFilesByDigest(
    const std::string& digest) {
  absl::MutexLock lock(&mutex_);
  std::vector<FileIdentity> found;
  for (const auto& [path, file] : file_digests_) {
    if (file.digest == digest) found.push_back(file.identity);
  }
  return found;
}

absl::StatusOr<BaseModelRecord> MemoryStore::GetBaseModel(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  const auto it = base_models_.find(name);
  if (it == base_models_.end()) {
    return absl::NotFoundError(absl::StrCat("no base model is registered as '", name, "'"));
  }
  return it->second;
}

absl::StatusOr<std::vector<BaseModelRecord>> MemoryStore::ListBaseModels(const std::string& after,
                                                                         int limit) {
  absl::MutexLock lock(&mutex_);
  std::vector<BaseModelRecord> found;
  for (auto it = base_models_.upper_bound(after);
       it != base_models_.end() && static_cast<int>(found.size()) < limit; ++it) {
    found.push_back(it->second);
  }
  return found;
}

absl::StatusOr<DerivativeRecord> MemoryStore::GetDerivative(const DerivativeId& derivative_id) {
  absl::MutexLock lock(&mutex_);
  for (const DerivativeRecord& derivative : derivatives_) {
    if (derivative.derivative_id == derivative_id) return derivative;
  }
  return absl::NotFoundError(absl::StrCat("there is no derivative ", derivative_id.value()));
}

absl::StatusOr<std::vector<DerivativeRecord>> MemoryStore::ListDerivatives(
    const DerivativeFilter& filter) {
  absl::MutexLock lock(&mutex_);
  std::vector<DerivativeRecord> found;
  bool started = filter.before.empty();
  for (auto it = derivatives_.rbegin(); it != derivatives_.rend(); ++it) {
    if (static_cast<int>(found.size()) >= filter.limit) break;
    if (!started) {
      started = it->derivative_id == filter.before;
      continue;
    }
    if (!filter.team.empty() && it->team != filter.team) continue;
    if (!filter.base_model_digest.empty() && it->base_model_digest != filter.base_model_digest) {
      continue;
    }
    found.push_back(*it);
  }
  return found;
}

absl::StatusOr<bool> MemoryStore::IsReferenced(const std::string& digest) {
  absl::MutexLock lock(&mutex_);
  for (const auto& [owner, digests] : references_) {
    if (digests.contains(digest)) return true;
  }
  return false;
}

}  // namespace offshoot
