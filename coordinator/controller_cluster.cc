// The controller's part that keeps the scheduler's view of the cluster up to date: each change of a
// job or worker changes its entry only, so that a plan does not begin with reading everything.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/assignment.h"
#include "coordinator/controller.h"

namespace offshoot {
namespace {

// Beyond as many, those that nobody uses are dropped.
constexpr std::size_t kMaxJobClasses = 4096;
constexpr std::size_t kMaxDeviceSorts = 1024;
// A job that runs longer than expected is expected to run so long yet.
constexpr absl::Duration kOverdue = absl::Minutes(5);

// What a bit-identical continuation must find again.
std::string DeviceClassOf(const WorkerRecord& worker, const DeviceRecord& device) {
  if (device.kind != "cpu") return absl::StrCat(device.kind, " ", device.model);
  return absl::StrCat("cpu ", worker.cpu_model, ", ", device.threads, " threads",
                      worker.instruction_sets.empty() ? "" : ", ",
                      absl::StrJoin(worker.instruction_sets, "+"));
}

std::string KeyOf(const JobDefinition& definition, const MemoryNeeds* memory) {
  const JobRequirements& wanted = definition.requirements;
  return absl::StrCat(definition.team, "\n", definition.queue, "\n", definition.priority, "\n",
                      wanted.ranks, " ", wanted.min_ranks, " ", wanted.max_ranks, "\n",
                      wanted.device_kind, "\n", wanted.min_memory_bytes, " ",
                      wanted.exchange_artifacts, "\n", absl::StrJoin(wanted.gpu_models, "\n"),
                      "\n\n", absl::StrJoin(wanted.labels, "\n", absl::PairFormatter("=")),
                      memory == nullptr ? "" : FormatMemoryNeeds(*memory));
}

}  // namespace

std::optional<WaitingReason> WaitingView::Find(const JobId& job_id) {
  absl::call_once(once_, [this] {
    index_.reserve(reasons_.size());
    for (std::size_t i = 0; i < reasons_.size(); ++i) index_[reasons_[i].job_id] = i;
  });
  const auto it = index_.find(job_id);
  if (it == index_.end()) return std::nullopt;
  return reasons_[it->second];
}

std::shared_ptr<const JobClass> Controller::ClassOf(const JobDefinition& definition,
                                                    const MemoryNeeds* memory) {
  if (job_classes_.size() > kMaxJobClasses) {
    std::erase_if(job_classes_, [](const auto& entry) { return entry.second.use_count() == 1; });
  }
  std::shared_ptr<const JobClass>& kept = job_classes_[KeyOf(definition, memory)];
  if (kept == nullptr) {
    JobClass made{definition.team, definition.queue, definition.priority, definition.requirements};
    if (memory != nullptr) made.requirements.memory = *memory;
    kept = std::make_shared<const JobClass>(std::move(made));
  }
  return kept;
}

std::shared_ptr<const DeviceSort> Controller::SharedSort(DeviceSort sort) {
  if (device_sorts_.size() > kMaxDeviceSorts) {
    absl::erase_if(device_sorts_, [](const auto& entry) { return entry.second.use_count() == 1; });
  }
  std::shared_ptr<const DeviceSort>& kept = device_sorts_[sort];
  if (kept == nullptr) kept = std::make_shared<const DeviceSort>(std::move(sort));
  return kept;
}

void Controller::UpdateCluster(const JobRecord& job) {
  if (job.inputs != nullptr) {
    const std::string& key = job.inputs->preflight_key;
    if (job.state == JobState::kValidating) {
      unchecked_[key].insert(job.id());
    } else if (const auto it = unchecked_.find(key); it != unchecked_.end()) {
      it->second.erase(job.id());
      if (it->second.empty()) unchecked_.erase(it);
    }
  }
  UpdateWaiting(job);
  if (job.has_open_attempt()) {
    UpdateRunning(job);
  } else {
    RemoveRunning(job.id());
  }
}

void Controller::UpdateWaiting(const JobRecord& job) {
  const auto it = waiting_index_.find(job.id());
  if (job.state != JobState::kQueued) {
    if (it == waiting_index_.end()) return;
    const std::size_t hole = it->second;
    waiting_index_.erase(it);
    if (hole + 1 < cluster_.waiting.size()) {
      cluster_.waiting[hole] = std::move(cluster_.waiting.back());
      waiting_index_[cluster_.waiting[hole].job_id] = hole;
    }
    cluster_.waiting.pop_back();
    return;
  }
  WaitingJob waiting;
  waiting.job_id = job.id();
  waiting.job_class = ClassOf(*job.definition, job.memory.get());
  waiting.created = job.definition->created;
  waiting.not_before = job.not_before;
  if (job.definition->max_runtime != absl::InfiniteDuration()) {
    waiting.runtime_left = job.definition->max_runtime;
    for (const AttemptRecord& attempt : job.attempts) {
      waiting.runtime_left -= attempt.finished - attempt.started;
    }
  }
  if (job.checkpoint && !job.attempts.empty()) {
    const auto spec = SpecOf(*job.definition);
    if (spec.ok() && (*spec)->reproducible) waiting.device_class = job.attempts.back().device_class;
  }
  waiting.avoid = job.WorkersThatHung();
  if (it != waiting_index_.end()) {
    cluster_.waiting[it->second] = std::move(waiting);
  } else {
    waiting_index_[job.id()] = cluster_.waiting.size();
    cluster_.waiting.push_back(std::move(waiting));
  }
}

void Controller::UpdateRunning(const JobRecord& job) {
  RunningJob running;
  running.job_id = job.id();
  running.job_class = ClassOf(*job.definition);
  const AttemptRecord& attempt = job.attempts.back();
  int devices = 0;
  for (const GangMember& member : attempt.members) {
    if (member.ended) continue;
    DevicePart& part = running.parts.emplace_back();
    part.worker_id = member.worker_id;
    const std::vector<DeviceRecord>& offered = workers_[member.worker_id].record.devices;
    for (const std::string& device_id : member.devices) {
      const auto device =
          std::find_if(offered.begin(), offered.end(),
                       [&](const DeviceRecord& each) { return each.device_id == device_id; });
      if (device == offered.end()) continue;
      part.devices.push_back(static_cast<int>(device - offered.begin()));
    }
    devices += static_cast<int>(part.devices.size());
  }
  running.started = attempt.started;
  if (const auto lease = leases_.find(job.id()); lease != leases_.end()) {
    running.latest_end = lease->second.runtime_ends;
  }
  running.stopping = job.stop_intent != StopIntent::kNone || IsTerminal(job.state);
  running.preemptible = job.state == JobState::kStarting || job.state == JobState::kRunning;
  const auto [it, is_new] = running_index_.try_emplace(job.id(), cluster_.running.size());
  if (is_new) {
    AccrueUse(job.definition->team, devices);
    cluster_.running.push_back(std::move(running));
    return;
  }
  int before = 0;
  for (const DevicePart& part : cluster_.running[it->second].parts) {
    before += static_cast<int>(part.devices.size());
  }
  if (devices != before) {
    AccrueUse(job.definition->team, devices - before);
    write_.team_use.push_back(team_use_[job.definition->team].record);
  }
  cluster_.running[it->second] = std::move(running);
}

void Controller::RemoveRunning(const JobId& job_id) {
  const auto it = running_index_.find(job_id);
  if (it == running_index_.end()) return;
  const std::size_t hole = it->second;
  int devices = 0;
  for (const DevicePart& part : cluster_.running[hole].parts) {
    devices += static_cast<int>(part.devices.size());
  }
  const std::string team = cluster_.running[hole].job_class->team;
  AccrueUse(team, -devices);
  write_.team_use.push_back(team_use_[team].record);
  running_index_.erase(it);
  if (hole + 1 < cluster_.running.size()) {
    cluster_.running[hole] = std::move(cluster_.running.back());
    running_index_[cluster_.running[hole].job_id] = hole;
  }
  cluster_.running.pop_back();
}

// dU/dt = devices - U ln 2 / half-life, carried on to now.
void Controller::AccrueUse(const std::string& team, int more_devices) {
  TeamUseState& use = team_use_[team];
  use.record.team = team;
  if (use.record.as_of != absl::InfinitePast() && now_ > use.record.as_of) {
    const double rate = std::log(2) / absl::ToDoubleSeconds(options_.scheduling->usage_half_life);
    const double kept = std::exp(-rate * absl::ToDoubleSeconds(now_ - use.record.as_of));
    use.record.device_seconds = use.record.device_seconds * kept + use.devices * (1 - kept) / rate;
  }
  use.record.as_of = now_;
  use.devices += more_devices;
}

// A team's use is stored when one of its attempts ends: what those that go on have used since is
// made up for, the time without a coordinator included.
void Controller::RecoverUse(const std::vector<JobRecord>& jobs) {
  const double rate = std::log(2) / absl::ToDoubleSeconds(options_.scheduling->usage_half_life);
  std::map<std::string, double> since;
  for (const JobRecord& job : jobs) {
    if (!job.has_open_attempt()) continue;
    const std::string& team = job.definition->team;
    const AttemptRecord& attempt = job.attempts.back();
    const absl::Time from = std::max(team_use_[team].record.as_of, attempt.started);
    if (from >= now_) continue;
    const double kept = std::exp(-rate * absl::ToDoubleSeconds(now_ - from));
    for (const GangMember& member : attempt.members) {
      if (!member.ended) {
        since[team] += static_cast<double>(member.devices.size()) * (1 - kept) / rate;
      }
    }
  }
  for (const auto& [team, device_seconds] : since) {
    AccrueUse(team, 0);
    team_use_[team].record.device_seconds += device_seconds;
  }
}

void Controller::UpdateOffer(WorkerState& worker) {
  const WorkerRecord& record = worker.record;
  auto offer = std::make_shared<WorkerOffer>();
  offer->worker_id = record.worker_id;
  offer->name = record.name;
  offer->labels.insert(record.labels.begin(), record.labels.end());
  offer->taints = record.taints;
  offer->joins_gangs = !record.address.empty();
  for (const DeviceRecord& device : record.devices) {
    offer->devices.push_back(
        {device.device_id, SharedSort({device.kind, device.model, device.memory_bytes,
                                       DeviceClassOf(record, device), SpeedTier(device.speed)})});
  }
  worker.offer = std::move(offer);
  for (const JobId& job_id : worker.leased) UpdateRunning(jobs_.at(job_id));
}

// What changes with time; and the checks, one for all jobs that wait for the same answer. Returns
// how many of cluster_.waiting are jobs to train; the others are to be taken away after the plan.
std::size_t Controller::CompleteSnapshot() {
  cluster_.version = version_;
  cluster_.policy = options_.scheduling;
  const std::size_t queued = cluster_.waiting.size();
  std::map<WorkerId, int> checks;
  std::set<std::string> asked;
  for (const auto& [job_id, preflight] : preflights_) {
    ++checks[preflight.worker_id];
    const JobRecord* job = FindJob(job_id);
    if (job != nullptr && job->inputs != nullptr) asked.insert(job->inputs->preflight_key);
  }
  for (const auto& [key, job_ids] : unchecked_) {
    if (asked.contains(key)) continue;
    const JobRecord& job = jobs_.at(*job_ids.begin());
    WaitingJob& waiting = cluster_.waiting.emplace_back();
    waiting.job_id = job.id();
    waiting.job_class = ClassOf(*job.definition);
    waiting.created = job.definition->created;
    waiting.kind = WorkKind::kPreflight;
    if (const auto failed = failed_checks_.find(job.id()); failed != failed_checks_.end()) {
      waiting.avoid = {failed->second};
    }
    waiting.not_before = job.not_before;
  }
  cluster_.workers.clear();
  for (const auto& [worker_id, state] : workers_) {
    if (state.offer == nullptr ||
        (state.session == 0 && now_ - state.last_seen >= options_.lease)) {
      continue;
    }
    const auto running = checks.find(worker_id);
    // A cut link leaves the session open for long: who is not heard of is given nothing.
    const bool heard_of = state.session != 0 && now_ - state.last_seen < options_.lease;
    cluster_.workers.push_back(SchedulableWorker{state.offer, heard_of, state.record.draining,
                                                 running == checks.end() ? 0 : running->second});
  }
  cluster_.use.clear();
  for (auto& [team, use] : team_use_) {
    AccrueUse(team, 0);
    cluster_.use.push_back(TeamUse{team, use.record.device_seconds});
  }
  if (queued > 0) EstimateEnds();
  return queued;
}

void Controller::EstimateEnds() {
  absl::MutexLock lock(&view_mutex_);
  for (RunningJob& running : cluster_.running) {
    const auto progress = progress_.find(running.job_id);
    if (progress != progress_.end() && progress->second.estimated_seconds_left > 0) {
      running.expected_end = now_ + absl::Seconds(progress->second.estimated_seconds_left);
    } else {
      running.expected_end =
          std::max(running.started + options_.scheduling->expected_runtime, now_ + kOverdue);
    }
    running.expected_end = std::min(running.expected_end, running.latest_end);
  }
}

}  // namespace offshoot
