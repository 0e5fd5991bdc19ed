#include "coordinator/scheduler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <queue>
#include <set>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/placement.h"

namespace offshoot {
namespace {

using Sentence = std::shared_ptr<const std::string>;

constexpr std::array<const char*, 2> kKinds = {"cuda", "cpu"};

// Measured speeds within this ratio are taken for equal.
constexpr double kSpeedRatio = 1.5;

Sentence Say(std::string text) { return std::make_shared<const std::string>(std::move(text)); }

std::string DeviceWords(const Shape& shape) {
  const JobRequirements& requirements = shape.requirements;
  std::string words =
      absl::StrCat(requirements.ranks, requirements.device_kind.empty() ? "" : " ",
                   requirements.device_kind, requirements.ranks == 1 ? " device" : " devices");
  if (requirements.min_memory_bytes > 0) {
    absl::StrAppendFormat(&words, " with at least %.1f GiB of memory%s",
                          static_cast<double>(requirements.min_memory_bytes) / (1 << 30),
                          requirements.ranks == 1 ? "" : " each");
  }
  if (!requirements.gpu_models.empty()) {
    absl::StrAppend(&words, " of model ", absl::StrJoin(requirements.gpu_models, " or "));
  }
  if (!requirements.labels.empty()) {
    absl::StrAppend(&words, " on workers labelled ",
                    absl::StrJoin(requirements.labels, ", ", absl::PairFormatter("=")));
  }
  if (!shape.device_class.empty()) {
    absl::StrAppend(&words, " of the sort it began on (", shape.device_class,
                    "), because it is reproducible");
  }
  if (!shape.avoid.empty()) {
    absl::StrAppend(&words, " on other workers than where a rank of it hung");
  }
  return words;
}

bool IsAmong(const std::vector<WorkerId>& sorted, const WorkerId& worker) {
  return std::binary_search(sorted.begin(), sorted.end(), worker);
}

int FewestRanks(const JobRequirements& requirements) {
  return requirements.min_ranks > 0 ? std::min(requirements.min_ranks, requirements.ranks)
                                    : requirements.ranks;
}

// A shape of job and what this plan has found out about it.
struct ShapeState {
  Shape shape;
  std::vector<WorkerId> asked_to_avoid;
  bool ready = false;
  std::array<Pool, kKinds.size()> pools;
  int most = 0;          // devices of one kind there are
  std::size_t kind = 0;  // the first that could ever do
  // A job that ends then or later did not fit, and so none will in this plan.
  std::optional<absl::Time> full_for;
  std::optional<int> cannot_preempt_from;  // at this priority or below
  Sentence waiting;
  Sentence kept;
  Sentence infeasible;
  absl::Time free_by = absl::InfiniteFuture();
  std::optional<std::size_t> seen_after;  // has_free holds after so many starts
  bool has_free = false;
};

// What a team or a queue holds, and may.
struct Share {
  ShareLimits limits;
  int devices = 0;
  int jobs = 0;
  std::string title;  // "team red"
  Sentence full;
};

struct Key {
  int priority;
  absl::Time created;
  const WaitingJob* job;
  std::uint32_t job_class;
};

struct TeamQueue {
  std::string name;
  double weight = 1;
  double use = 0;
  std::vector<Key> jobs;  // in order
  std::size_t next = 0;
};

// A class of jobs, looked up once.
struct ClassState {
  const JobClass* job_class = nullptr;
  int priority = 0;  // with the queue's
  std::uint32_t team = 0;
  Share* team_share = nullptr;
  Share* queue_share = nullptr;
  ShapeState* shape = nullptr;  // of its jobs that ask for no more than the class does
};

class Scheduler {
 public:
  Scheduler(const ClusterSnapshot& snapshot, absl::Time now)
      : snapshot_(snapshot), policy_(*snapshot.policy), now_(now), placement_(snapshot, now) {
    plan_.snapshot_version = snapshot.version;
    for (const TeamUse& use : snapshot.use) use_[use.team] = use.device_seconds;
    for (const RunningJob& job : snapshot.running) {
      const ClassState& state = classes_[ClassOf(*job.job_class, job.job_class.get())];
      int devices = 0;
      for (const DevicePart& part : job.parts) devices += static_cast<int>(part.devices.size());
      Hold(state, devices);
      if (job.preemptible && !job.stopping) {
        lowest_running_ = std::min(lowest_running_.value_or(state.priority), state.priority);
      }
    }
  }

  Plan Run() {
    MakeOrder();
    plan_.waiting.reserve(snapshot_.waiting.size());
    // The team that comes next: of the highest priority, then of the least use, then by name.
    const auto later = [this](std::uint32_t one, std::uint32_t other) {
      return Rank(teams_[other]) < Rank(teams_[one]);
    };
    std::priority_queue<std::uint32_t, std::vector<std::uint32_t>, decltype(later)> queue(later);
    for (std::uint32_t team = 0; team < teams_.size(); ++team) {
      if (!teams_[team].jobs.empty()) queue.push(team);
    }
    while (!queue.empty()) {
      const std::uint32_t team = queue.top();
      queue.pop();
      const Key key = teams_[team].jobs[teams_[team].next++];
      // Other teams' jobs are looked at before it: its memory has arrived by then.
      if (teams_[team].next < teams_[team].jobs.size()) {
        Prefetch(*teams_[team].jobs[teams_[team].next].job);
      }
      Consider(*key.job, classes_[key.job_class], teams_[team]);
      if (teams_[team].next < teams_[team].jobs.size()) queue.push(team);
    }
    Enlarge();
    return std::move(plan_);
  }

 private:
  struct Started {
    std::size_t start;  // index into plan_.starts
    ShapeState* shape;
    std::size_t kind;
    int ranks;
    const ClassState* job_class;
  };

  static void Prefetch(const WaitingJob& job) {
    for (std::size_t at = 0; at < sizeof(job); at += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(&job) + at);
    }
  }

  static std::tuple<int, double, const std::string&> Rank(const TeamQueue& team) {
    return {-team.jobs[team.next].priority, team.use / team.weight, team.name};
  }

  Share* ShareOf(std::map<std::string, Share>& shares, const char* what, const std::string& name,
                 const ShareLimits& limits) {
    Share& share = shares[name];
    if (share.title.empty()) {
      share.title = absl::StrCat(what, " ", name);
      share.limits = limits;
    }
    return &share;
  }

  std::uint32_t ClassOf(const JobClass& job_class, const JobClass* address) {
    const auto [it, is_new] =
        class_index_.try_emplace(address, static_cast<std::uint32_t>(classes_.size()));
    if (!is_new) return it->second;
    ClassState& state = classes_.emplace_back();
    state.job_class = &job_class;
    const QueuePolicy& queue = policy_.QueueOf(job_class.queue);
    const TeamPolicy& team = policy_.TeamOf(job_class.team);
    state.priority = job_class.priority + queue.priority;
    state.team_share = ShareOf(team_shares_, "team", job_class.team, team.limits);
    state.queue_share = ShareOf(queue_shares_, "queue", job_class.queue, queue.limits);
    const auto [index, is_new_team] =
        team_index_.try_emplace(job_class.team, static_cast<std::uint32_t>(teams_.size()));
    if (is_new_team) {
      TeamQueue& made = teams_.emplace_back();
      made.name = job_class.team;
      made.weight = team.weight;
      const auto use = use_.find(job_class.team);
      made.use = use == use_.end() ? 0 : use->second;
    }
    state.team = index->second;
    return it->second;
  }

  static void Hold(const ClassState& state, int devices) {
    for (Share* share : {state.team_share, state.queue_share}) {
      share->devices += devices;
      share->jobs += 1;
    }
  }

  void MakeOrder() {
    for (const WaitingJob& job : snapshot_.waiting) {
      const std::uint32_t job_class = ClassOf(*job.job_class, job.job_class.get());
      const ClassState& state = classes_[job_class];
      teams_[state.team].jobs.push_back(Key{state.priority, job.created, &job, job_class});
    }
    for (TeamQueue& team : teams_) {
      std::sort(team.jobs.begin(), team.jobs.end(), [](const Key& one, const Key& other) {
        if (one.priority != other.priority) return one.priority > other.priority;
        if (one.created != other.created) return one.created < other.created;
        return one.job->job_id < other.job->job_id;
      });
    }
  }

  void Consider(const WaitingJob& job, ClassState& state, TeamQueue& team) {
    if (job.not_before > now_) {
      plan_.look_again = std::min(plan_.look_again, job.not_before);
      Wait(
          job,
          Say(absl::StrCat(
              "waiting ", absl::FormatDuration(absl::Ceil(job.not_before - now_, absl::Seconds(1))),
              " before the next attempt")),
          job.not_before);
    } else if (job.kind == WorkKind::kPreflight) {
      ConsiderPreflight(job);
    } else {
      ConsiderTraining(job, state, team);
    }
  }

  void ConsiderPreflight(const WaitingJob& job) {
    const SchedulableWorker* best = nullptr;
    const SchedulableWorker* avoided = nullptr;
    if (!no_checks_) {
      for (const SchedulableWorker* worker : placement_.workers()) {
        if (!worker->connected || worker->draining) continue;
        some_worker_ = true;
        const int checks = worker->preflights + added_checks_[worker];
        if (checks >= kPreflightsPerWorker) continue;
        if (IsAmong(job.avoid, worker->id())) {
          avoided = worker;
          continue;
        }
        if (best == nullptr || checks < best->preflights + added_checks_[best]) best = worker;
        if (checks == 0) break;
      }
    }
    if (best == nullptr) best = avoided;
    if (best != nullptr && AtBound()) best = nullptr;
    if (best == nullptr) {
      no_checks_ = true;
      static const Sentence kNone =
          Say("waiting for a worker to check base model and data: none is connected");
      static const Sentence kBusy =
          Say("waiting for a worker that has time to check base model and data");
      Wait(job, some_worker_ ? kBusy : kNone, absl::InfiniteFuture());
      return;
    }
    ++added_checks_[best];
    plan_.preflights.push_back(PreflightStart{job.job_id, best->id()});
  }

  // The next plan follows at once.
  bool AtBound() {
    const std::size_t starts = plan_.starts.size() + plan_.preflights.size();
    if (starts < static_cast<std::size_t>(policy_.max_starts)) return false;
    plan_.look_again = now_;
    return true;
  }

  ShapeState& ShapeOf(const WaitingJob& job, ClassState& state) {
    const bool is_plain = job.device_class.empty() && job.avoid.empty();
    if (is_plain && state.shape != nullptr) return *state.shape;
    // The few jobs with workers to avoid are not in the index.
    const std::pair<const JobClass*, absl::string_view> key(state.job_class, job.device_class);
    const auto it = job.avoid.empty() ? shape_index_.find(key) : shape_index_.end();
    if (it != shape_index_.end()) return *it->second;
    Shape shape{state.job_class->requirements, job.device_class, job.avoid};
    const auto same = std::find_if(shapes_.begin(), shapes_.end(), [&](const auto& other) {
      return other->asked_to_avoid == job.avoid &&
             other->shape.device_class == shape.device_class &&
             other->shape.requirements == shape.requirements;
    });
    ShapeState* made = same == shapes_.end() ? nullptr : same->get();
    if (made == nullptr) {
      made = shapes_.emplace_back(std::make_unique<ShapeState>()).get();
      made->asked_to_avoid = job.avoid;
      made->shape = std::move(shape);
      FillPools(*made);
      if (!job.avoid.empty() && made->most < FewestRanks(made->shape.requirements)) {
        made->shape.avoid.clear();  // there is nothing else
        FillPools(*made);
      }
      made->waiting =
          Say(absl::StrCat("waiting for ", DeviceWords(made->shape), " to become free"));
      made->kept = Say(absl::StrCat("waiting for ", DeviceWords(made->shape),
                                    "; those that are free are kept for a larger job before it"));
    }
    if (is_plain) {
      state.shape = made;
    } else if (job.avoid.empty()) {
      shape_index_[key] = made;
    }
    return *made;
  }

  void FillPools(ShapeState& state) {
    const int fewest = FewestRanks(state.shape.requirements);
    for (std::size_t k = kKinds.size(); k-- > 0;) {
      state.pools[k] = placement_.MakePool(state.shape, kKinds[k], fewest);
      state.most = std::max(state.most, state.pools[k].total);
      if (state.pools[k].total >= fewest) state.kind = k;
    }
  }

  void ConsiderTraining(const WaitingJob& job, ClassState& state, TeamQueue& team) {
    ShapeState& shape = ShapeOf(job, state);
    const JobRequirements& requirements = shape.shape.requirements;
    const int fewest = FewestRanks(requirements);
    if (shape.most < fewest) return ExplainInfeasible(job, shape);
    int most = requirements.ranks;
    for (Share* share : {state.team_share, state.queue_share}) {
      if (!WithinLimits(job, *share, fewest, &most)) return;
    }
    const absl::Time ends = now_ + job.runtime_left;
    team.use += static_cast<double>(requirements.ranks) * ExpectedSeconds(job);
    const bool full = shape.full_for && *shape.full_for <= ends;
    const bool at_bound = !full && AtBound();
    if (!full && !at_bound) {
      for (std::size_t k = 0; k < kKinds.size(); ++k) {
        const auto found = placement_.Find(shape.pools[k], fewest, most, ends);
        if (!found) continue;
        int ranks = 0;
        for (const auto& [group, count] : *found) ranks += count;
        started_.push_back({plan_.starts.size(), &shape, k, ranks, &state});
        plan_.starts.push_back(Start{job.job_id, placement_.Take(*found)});
        Hold(state, ranks);
        return;
      }
      Block(shape, fewest, ends);
    }
    if (!at_bound) MakeRoom(job, state.priority, shape, fewest);
    // Only starts change what is free: a look at every group for every job would take seconds.
    if (shape.seen_after != plan_.starts.size()) {
      shape.seen_after = plan_.starts.size();
      shape.has_free = placement_.FreeIn(shape.pools[shape.kind]) >= fewest;
    }
    const double ahead = ahead_[shape.kind] / std::max(1, shape.pools[shape.kind].total);
    ahead_[shape.kind] += requirements.ranks * ExpectedSeconds(job);
    Wait(job, shape.has_free ? shape.kept : shape.waiting, shape.free_by + absl::Seconds(ahead));
  }

  double ExpectedSeconds(const WaitingJob& job) const {
    return absl::ToDoubleSeconds(std::min(job.runtime_left, policy_.expected_runtime));
  }

  // What is free is not enough: it is kept, so that it becomes enough.
  void Block(ShapeState& shape, int fewest, absl::Time ends) {
    const bool first = !shape.full_for;
    shape.full_for = ends;
    if (!first) return;
    const Pool& pool = shape.pools[shape.kind];
    shape.free_by = placement_.FreeBy(pool, fewest, /*hard=*/false);
    // Kept for others: its turn comes after them.
    if (placement_.Find(pool, fewest, fewest, absl::InfinitePast())) return;
    const absl::Time sure = placement_.FreeBy(pool, fewest, /*hard=*/true);
    placement_.Keep(pool, sure == absl::InfiniteFuture() ? now_ + policy_.longest_backfill : sure);
  }

  bool WithinLimits(const WaitingJob& job, Share& share, int fewest, int* most) {
    const ShareLimits& limits = share.limits;
    if (limits.max_devices > 0 && fewest > limits.max_devices) {
      Infeasible(job, Say(absl::StrCat(share.title, " may hold ", limits.max_devices,
                                       " devices at a time and the job wants ", fewest,
                                       "; ask for fewer ranks, or an administrator for more")));
      return false;
    }
    const int room = limits.max_devices > 0 ? limits.max_devices - share.devices : *most;
    if (room >= fewest && (limits.max_jobs == 0 || share.jobs < limits.max_jobs)) {
      *most = std::min(*most, room);
      return true;
    }
    if (share.full == nullptr) {
      share.full =
          room < fewest
              ? Say(absl::StrCat("waiting for ", share.title, ": it holds ", share.devices,
                                 " of the ", limits.max_devices, " devices it may hold"))
              : Say(absl::StrCat("waiting for ", share.title, ": it runs ", share.jobs, " of the ",
                                 limits.max_jobs, " jobs it may run at a time"));
    }
    Wait(job, share.full, absl::InfiniteFuture());
    return false;
  }

  // Jobs of lower priority are asked to make room, the lowest and youngest first.
  void MakeRoom(const WaitingJob& job, int priority, ShapeState& shape, int fewest) {
    if (!policy_.preemption || !lowest_running_ || *lowest_running_ >= priority) return;
    if (shape.cannot_preempt_from && priority <= *shape.cannot_preempt_from) return;
    const Pool& pool = shape.pools[shape.kind];
    if (placement_.ClaimComing(pool, fewest)) return;
    int missing = fewest - placement_.FreeIn(pool);
    std::vector<std::pair<std::size_t, int>> victims;  // running job, its devices
    for (const std::size_t r : Victims()) {
      const RunningJob& running = snapshot_.running[r];
      if (missing <= 0 || PriorityOf(running) >= priority) break;
      const int devices = placement_.DevicesIn(pool, r);
      if (devices == 0 || asked_.contains(r)) continue;
      victims.emplace_back(r, devices);
      missing -= devices;
    }
    const bool too_many = plan_.preemptions.size() + victims.size() >
                          static_cast<std::size_t>(policy_.max_preemptions);
    if (missing > 0 || victims.empty() || too_many) {
      shape.cannot_preempt_from = priority;
      return;
    }
    // Whoever is not needed after all goes on, the highest priority first.
    for (std::size_t i = victims.size(); i-- > 0;) {
      if (missing + victims[i].second > 0) continue;
      missing += victims[i].second;
      victims.erase(victims.begin() + static_cast<std::ptrdiff_t>(i));
    }
    for (const auto& [r, devices] : victims) {
      asked_.insert(r);
      plan_.preemptions.push_back(Preemption{snapshot_.running[r].job_id, job.job_id});
    }
  }

  int PriorityOf(const RunningJob& job) const {
    return job.job_class->priority + policy_.QueueOf(job.job_class->queue).priority;
  }

  const std::vector<std::size_t>& Victims() {
    if (!victims_.empty()) return victims_;
    for (std::size_t r = 0; r < snapshot_.running.size(); ++r) {
      if (snapshot_.running[r].preemptible && !snapshot_.running[r].stopping) victims_.push_back(r);
    }
    std::sort(victims_.begin(), victims_.end(), [this](std::size_t one, std::size_t other) {
      const RunningJob& first = snapshot_.running[one];
      const RunningJob& second = snapshot_.running[other];
      if (const int a = PriorityOf(first), b = PriorityOf(second); a != b) return a < b;
      if (first.started != second.started) return first.started > second.started;
      return first.job_id < second.job_id;
    });
    return victims_;
  }

  // Devices that nobody waits for go to jobs that can use more than they asked for.
  void Enlarge() {
    if (blocked_ > 0) return;
    for (const Started& started : started_) {
      int more = started.shape->shape.requirements.max_ranks - started.ranks;
      for (const Share* share : {started.job_class->team_share, started.job_class->queue_share}) {
        if (share->limits.max_devices > 0) {
          more = std::min(more, share->limits.max_devices - share->devices);
        }
      }
      if (more <= 0) continue;
      const Pool& pool = started.shape->pools[started.kind];
      const auto found = placement_.Find(pool, 1, more, absl::InfiniteFuture());
      Start& start = plan_.starts[started.start];
      if (!found || !placement_.MayWorkTogether(pool, start.parts, *found)) continue;
      for (StartPart& part : placement_.Take(*found)) {
        started.job_class->team_share->devices += static_cast<int>(part.device_ids.size());
        started.job_class->queue_share->devices += static_cast<int>(part.device_ids.size());
        const auto same =
            std::find_if(start.parts.begin(), start.parts.end(),
                         [&](const StartPart& other) { return other.worker_id == part.worker_id; });
        if (same == start.parts.end()) {
          start.parts.push_back(std::move(part));
        } else {
          same->device_ids.insert(same->device_ids.end(), part.device_ids.begin(),
                                  part.device_ids.end());
        }
      }
    }
  }

  void Wait(const WaitingJob& job, Sentence sentence, absl::Time estimated_start) {
    if (job.kind == WorkKind::kTrain && job.not_before <= now_) ++blocked_;
    plan_.waiting.push_back(
        WaitingReason{job.job_id, false, std::move(sentence), ++place_, estimated_start});
  }

  void Infeasible(const WaitingJob& job, Sentence sentence) {
    plan_.waiting.push_back(
        WaitingReason{job.job_id, true, std::move(sentence), 0, absl::InfiniteFuture()});
  }

  // Not empty: of the devices that it may use otherwise, none has the memory that it needs.
  std::string WhyTooSmall(const Shape& shape) const {
    Shape without = shape;
    without.requirements.memory = MemoryNeeds();
    std::string text;
    for (const char* kind : kKinds) {
      std::int64_t largest = 0;
      for (const SchedulableWorker* worker : placement_.workers()) {
        if (!WorkerFits(*worker->offer, shape.requirements)) continue;
        for (const SchedulableDevice& device : worker->offer->devices) {
          if (device.sort->kind != kind || !DeviceFits(*device.sort, without)) continue;
          if (DeviceFits(*device.sort, shape)) return "";
          largest = std::max(largest, device.sort->memory_bytes);
        }
      }
      if (largest == 0) continue;
      absl::StrAppend(&text, text.empty() ? "" : "; ",
                      ExplainMemory(shape.requirements.memory.On(kind), kind, largest));
    }
    return text;
  }

  void ExplainInfeasible(const WaitingJob& job, ShapeState& shape) {
    if (placement_.workers().empty()) {
      static const Sentence kNone =
          Say("waiting for a worker: none is known; start one with offshoot-worker");
      Wait(job, kNone, absl::InfiniteFuture());
      return;
    }
    if (shape.infeasible == nullptr) {
      std::string text = absl::StrCat("the workers do not have ", DeviceWords(shape.shape));
      if (const std::string memory = WhyTooSmall(shape.shape); !memory.empty()) {
        text = memory;
      } else if (shape.most > 0)
        absl::StrAppend(&text, "; the most that can work together is ", shape.most);
      shape.infeasible = Say(std::move(text));
    }
    Infeasible(job, shape.infeasible);
  }

  const ClusterSnapshot& snapshot_;
  const SchedulingPolicy& policy_;
  const absl::Time now_;
  Placement placement_;
  Plan plan_;
  std::map<std::string, double> use_;
  std::map<std::string, Share> team_shares_;
  std::map<std::string, Share> queue_shares_;
  std::vector<ClassState> classes_;
  absl::flat_hash_map<const JobClass*, std::uint32_t> class_index_;
  std::vector<TeamQueue> teams_;
  std::map<std::string, std::uint32_t> team_index_;
  std::vector<std::unique_ptr<ShapeState>> shapes_;
  absl::flat_hash_map<std::pair<const JobClass*, absl::string_view>, ShapeState*> shape_index_;
  std::vector<Started> started_;
  std::array<double, kKinds.size()> ahead_{};  // device-seconds of the jobs that wait before
  std::optional<int> lowest_running_;          // priority of what could be preempted
  std::vector<std::size_t> victims_;
  std::set<std::size_t> asked_;
  absl::flat_hash_map<const SchedulableWorker*, int> added_checks_;
  bool no_checks_ = false;
  bool some_worker_ = false;
  int place_ = 0;
  int blocked_ = 0;
};

}  // namespace

int SpeedTier(double speed) {
  return speed > 0 ? static_cast<int>(std::floor(std::log(speed) / std::log(kSpeedRatio))) : -1000;
}

bool operator==(const WaitingReason& one, const WaitingReason& other) {
  return one.job_id == other.job_id && one.infeasible == other.infeasible &&
         *one.sentence == *other.sentence && one.place == other.place &&
         one.estimated_start == other.estimated_start;
}

Plan Schedule(const ClusterSnapshot& snapshot, absl::Time now) {
  return Scheduler(snapshot, now).Run();
}

}  // namespace offshoot
