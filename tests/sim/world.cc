#include "tests/sim/world.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/sim/faulty_store.h"
#include "tests/sim/sim_worker.h"

namespace offshoot::sim {
namespace {

constexpr char kSpec[] =
    "name: sim\nbase_model: /m.gguf\ndatasets:\n  - path: /d.jsonl\n    type: text\n";
constexpr char kGangSpec[] =
    "name: sim\nbase_model: /m.gguf\ndatasets:\n  - path: /d.jsonl\n    type: text\n"
    "reproducible: false\n";
constexpr char kBytes[] = "some bytes";
constexpr absl::Duration kLease = absl::Seconds(15);
constexpr absl::Duration kFaultsEnd = absl::Minutes(7);
constexpr absl::Duration kPatience = absl::Hours(2);
constexpr int kSubmitsEndMs = 240'000;

std::shared_ptr<const SchedulingPolicy> MakePolicy() {
  auto policy = std::make_shared<SchedulingPolicy>();
  policy->teams["red"].limits.max_devices = 10;
  policy->teams["blue"].weight = 2;
  policy->teams["grey"].limits.max_jobs = 4;
  policy->queues["fast"].priority = 5;
  policy->queues["fast"].limits.max_jobs = 3;
  policy->expected_runtime = absl::Minutes(1);
  return policy;
}

ResolvedInputs MakeInputs(int number) {
  ResolvedInputs resolved;
  // Some jobs share a check.
  resolved.inputs.preflight_key = absl::StrCat("key", number % 25 == 24 ? number : number / 3);
  resolved.inputs.inputs = {{"/base_model/path", {{"", "sha256:m", 7}}, "/m.gguf", "sha256:m"},
                            {"/datasets/0/path", {{"", "sha256:d", 7}}, "/d.jsonl", "sha256:d"}};
  return resolved;
}

}  // namespace

World::World(WorldOptions options)
    : options_(std::move(options)),
      random_(options_.seed),
      now_(absl::FromUnixSeconds(1'700'000'000)),
      clock_(now_),
      policy_(std::const_pointer_cast<SchedulingPolicy>(MakePolicy())),
      liar_(options_.faults && options_.seed % 4 == 3 ? 0 : -1),
      audit_(*policy_, liar_ >= 0),
      faults_(options_.faults) {
  store_ = std::make_unique<FaultyStore>(*this, options_.on_disk ? options_.directory : "");
  artifacts_ = *ArtifactDirectory::Open(options_.directory + "/artifacts");
  artifact_ = FileEntry{"adapter_model.safetensors", DigestOf(kBytes), sizeof(kBytes) - 1};
  auto upload = artifacts_->BeginUpload(artifact_.digest, artifact_.size_bytes, 0);
  if (upload.ok() && (*upload)->Append(kBytes).ok()) (void)(*upload)->Finish();
  outputs_ = std::make_unique<AttemptOutputs>(options_.directory + "/outputs", OutputLimits());
  static const auto kSpecs = std::pair(std::make_shared<const JobSpec>(*ParseJobSpec(kSpec)),
                                       std::make_shared<const JobSpec>(*ParseJobSpec(kGangSpec)));
  spec_ = kSpecs.first;
  gang_spec_ = kSpecs.second;
  for (int i = 0; i < options_.workers; ++i) {
    workers_.push_back(std::make_unique<SimWorker>(*this, i, 2 + i % 3));
  }
}

World::~World() { agenda_.clear(); }

void World::After(absl::Duration delay, std::function<void()> action) {
  agenda_.push_back(
      Item{now_ + std::max(delay, absl::ZeroDuration()), ++entered_, std::move(action)});
  std::push_heap(agenda_.begin(), agenda_.end(), Later);
}

void World::Note(const std::string& what) {
  static const bool kTrace = std::getenv("OFFSHOOT_SIM_TRACE") != nullptr;
  if (!kTrace) return;
  std::fprintf(stderr, "%8.3f %s\n",
               absl::ToDoubleSeconds(now_ - absl::FromUnixSeconds(1'700'000'000)), what.c_str());
}

absl::Time World::HealedAt(int worker) const {
  const auto it = partitioned_until_.find(worker);
  return it == partitioned_until_.end() ? absl::InfinitePast() : it->second;
}

SimWorker* World::WorkerNamed(const WorkerId& worker_id) {
  for (const auto& worker : workers_) {
    if (worker->id() == worker_id) return worker.get();
  }
  return nullptr;
}

JobId World::AnyJob() {
  if (acknowledged_.empty()) return JobId();
  auto job = acknowledged_.begin();
  std::advance(job, Below(static_cast<int>(acknowledged_.size())));
  return *job;
}

// Now and then the plan comes late: it was made from an older snapshot.
Plan World::MakePlan(const ClusterSnapshot& snapshot, absl::Time now) {
  Plan plan = Schedule(snapshot, now);
  audit_.ExaminePlan(snapshot, plan, now);
  // What is not stored (sessions, checks) has no version: only a plan of an older one is stale.
  if (late_plan_.snapshot_version != snapshot.version && Chance(20)) return late_plan_;
  if (Chance(50)) late_plan_ = plan;
  return plan;
}

void World::StartCoordinator() {
  if (controller_ != nullptr) return;
  ControllerOptions options;
  options.scheduling = policy_;
  options.lease = kLease;
  options.heartbeat_interval = absl::Seconds(4);
  options.unreachable_grace = absl::Minutes(2);
  options.version = "sim";
  options.schedule = [this](const ClusterSnapshot& snapshot, absl::Time now) {
    return MakePlan(snapshot, now);
  };
  dying_ = false;
  busy_until_ = now_;
  late_plan_ = Plan();
  controller_ = std::make_unique<Controller>(
      options, *store_, clock_, *artifacts_, *outputs_, signals_,
      [this](std::shared_ptr<const JobSpec>,
             std::function<void(absl::StatusOr<ResolvedInputs>)> done) {
        After(Delay(1, 2'000), [this, life = coordinator_life_, done = std::move(done)] {
          if (coordinator_life() != life) return;
          done(MakeInputs(Below(1'000)));
          Pump();
        });
      });
  coordinator_since_ = now_;
  ++coordinator_life_;
  Note(absl::StrCat("the coordinator starts, life ", coordinator_life_));
  Pump();
}

void World::KillCoordinator() {
  dying_ = true;
  // From outside of whatever the coordinator was called by.
  After(absl::ZeroDuration(), [this, dead = coordinator_life_] {
    if (coordinator_life_ == dead) CrashCoordinator();
  });
}

void World::CrashCoordinator() {
  if (controller_ == nullptr) return;
  Note("the coordinator is killed");
  ++crashes_;
  dying_ = true;
  for (const auto& worker : workers_) worker->BreakLink(absl::Seconds(20));
  controller_.reset();
  store_->Reopen();
  wake_ = absl::InfiniteFuture();
  After(Delay(200, 30'000), [this] { StartCoordinator(); });
}

void World::Pump() {
  if (controller_ == nullptr || dying_ || pumping_) return;
  absl::Time next = busy_until_;
  if (busy_until_ <= now_) {
    pumping_ = true;
    bool more = true;
    while (more && !dying_ && busy_until_ <= now_ && audit_.violation().empty()) {
      more = controller_->RunOnce();
    }
    pumping_ = false;
    if (dying_) return;
    next = std::max(controller_->NextDeadline(), now_ + absl::Milliseconds(1));
    if (busy_until_ > now_) next = busy_until_;
  }
  if (next == absl::InfiniteFuture() || (wake_ > now_ && next >= wake_)) return;
  wake_ = next;
  After(next - now_, [this, next] {
    if (wake_ == next) wake_ = absl::InfiniteFuture();
    Pump();
  });
}

JobDefinition World::MakeDefinition(int number) {
  static constexpr const char* kTeams[] = {"red", "blue", "green", "grey"};
  JobDefinition definition;
  definition.name = "sim";
  definition.team = kTeams[number % 4];
  definition.queue = number % 7 == 0 ? "fast" : kDefaultName;
  definition.priority = number % 12 == 0 ? 2 : 0;
  definition.spec_digest = "sha256:spec";
  JobRequirements& wanted = definition.requirements;
  if (number % 4 == 1 || number % 9 == 0) wanted.ranks = 2 + number % 6;
  if (number % 8 == 1) wanted.min_ranks = 1;
  wanted.exchange_artifacts = number / 4 % 2 == 0 && wanted.ranks > 1;
  if (number % 5 == 1) wanted.max_ranks = wanted.ranks + 2;
  if (number % 13 == 5) definition.max_runtime = absl::Minutes(3);
  if (number % 40 == 17) wanted.labels = {{"rack", "none"}};
  const bool alone = wanted.ranks == 1 && wanted.max_ranks == 0;
  definition.spec_yaml = alone ? kSpec : kGangSpec;
  definition.spec = alone ? spec_ : gang_spec_;
  return definition;
}

// As the command line does: tried again with the same request id until it is answered.
void World::Submit(int number, int try_number) {
  if (answered_.contains(number)) return;
  After(Delay(3'000, 20'000), [this, number, try_number] { Submit(number, try_number + 1); });
  if (coordinator_life() == 0) return;
  JobDefinition definition = MakeDefinition(number);
  definition.job_id = JobId(
      absl::StrFormat("job-%06d%s", number, try_number == 0 ? "" : absl::StrCat("r", try_number)));
  definition.request_id = absl::StrCat("request-", number);
  if (!definition.requirements.labels.empty()) infeasible_.insert(definition.job_id);
  std::optional<ResolvedInputs> inputs;
  if (number % 3 != 0) inputs = MakeInputs(number);
  controller_->SubmitJob(
      std::move(definition), std::move(inputs),
      [this, number, life = coordinator_life_](const absl::StatusOr<JobId>& job_id) {
        if (!job_id.ok() || coordinator_life() != life) return;
        answered_.insert(number);
        acknowledged_.insert(*job_id);
      });
  Pump();
}

// Whoever was not heard of for a lease has lost its attempts; and whoever waits knows why.
void World::Watch() {
  After(absl::Seconds(2), [this] { Watch(); });
  if (coordinator_life() == 0 || busy_until_ > now_) coordinator_since_ = now_;
  const bool settled = now_ - coordinator_since_ > absl::Seconds(2);
  for (const auto& worker : workers_) {
    absl::Time& reached = reached_.try_emplace(worker->number(), now_).first->second;
    if (worker->up() && !IsPartitioned(worker->number())) reached = now_;
  }
  for (const auto& [name, job] : audit_.jobs()) {
    if (settled && job.state == JobState::kQueued) {
      const std::optional<WaitingReason> waiting = controller_->Overlay(job.id()).waiting;
      const bool told = waiting && !waiting->sentence->empty();
      // A store that fails is read again after a second.
      int& rounds = unexplained_[name];
      rounds = told ? 0 : rounds + 1;
      if (rounds > 3) audit_.Fail(job.id(), "waits and nobody says why");
    }
    if (!job.has_open_attempt()) continue;
    for (const GangMember& member : job.attempts.back().members) {
      if (member.ended) continue;
      const absl::Time reached = reached_[WorkerNamed(member.worker_id)->number()];
      const absl::Time since = std::max({reached, coordinator_since_, job.attempts.back().started});
      if (now_ - since > kLease + absl::Seconds(30)) {
        audit_.Fail(job.id(),
                    absl::StrCat("still counts on ", member.worker_id.value(), ", which is gone"));
      }
    }
  }
}

void World::DisturbJobs() {
  if (!faults_) return;
  After(Delay(1'000, 20'000), [this] { DisturbJobs(); });
  const JobId job_id = AnyJob();
  if (coordinator_life() == 0 || job_id.empty()) return;
  LifecycleEvent event = ResumeRequested{};
  const int dice = Below(10);
  if (dice == 0) event = CancelRequested{"enough"};
  if (dice >= 1 && dice < 5) event = PauseRequested{};
  Note(absl::StrCat("a user: ", job_id.value(), " ", EventTypeName(event)));
  controller_->ChangeJob(job_id, std::move(event), [](const absl::Status&) {});
  Pump();
}

void World::DisturbCluster() {
  if (!faults_) return;
  After(Delay(2'000, 40'000), [this] { DisturbCluster(); });
  SimWorker& worker = *workers_[static_cast<std::size_t>(Below(options_.workers))];
  switch (Below(7)) {
    case 0:
      CrashCoordinator();
      break;
    case 1:
    case 2:
      worker.Crash(Below(3) == 0);
      After(Delay(500, 60'000), [&worker] { worker.Start(); });
      break;
    case 3:
      // Short ones may be over before either side has noticed.
      partitioned_until_[worker.number()] = now_ + Delay(1'000, 25'000);
      if (Below(3) != 0) {
        partitioned_until_[worker.number()] += Delay(0, 160'000);
        if (worker.up()) worker.BreakLink(absl::Seconds(20));
      }
      Note(absl::StrCat(worker.id().value(), " is cut off until ",
                        absl::ToDoubleSeconds(partitioned_until_[worker.number()] -
                                              absl::FromUnixSeconds(1'700'000'000))));
      break;
    case 4:
      if (worker.up()) worker.BreakLink(absl::Seconds(3));
      break;
    default:
      if (coordinator_life() == 0) break;
      controller_->SetDraining(worker.id(), Below(2) == 0, Below(2) == 0,
                               [](const absl::StatusOr<WorkerStatus>&) {});
      Pump();
  }
}

// From now on nothing fails any more, and everything must come to its end.
void World::SettleDown() {
  if (faults_) Note("things settle down");
  faults_ = false;
  partitioned_until_.clear();
  if (!dying_) StartCoordinator();
  for (const auto& worker : workers_) worker->Start();
  if (coordinator_life() != 0) {
    for (const auto& worker : workers_) {
      controller_->SetDraining(worker->id(), false, false,
                               [](const absl::StatusOr<WorkerStatus>&) {});
    }
    for (const JobId& job_id : acknowledged_) {
      controller_->ChangeJob(job_id, ResumeRequested{}, [](const absl::Status&) {});
    }
    Pump();
  }
  if (!AllEnded()) After(absl::Minutes(1), [this] { SettleDown(); });
}

bool World::AllEnded() const {
  if (static_cast<int>(acknowledged_.size()) < options_.jobs) return false;
  int hopeless = 0;
  for (const JobId& job_id : infeasible_) {
    const JobRecord* job = audit_.Find(job_id);
    if (job == nullptr || IsTerminal(job->state)) continue;
    if (job->state != JobState::kQueued) return false;
    const std::optional<WaitingReason> waiting =
        controller_ == nullptr ? std::nullopt : controller_->Overlay(job_id).waiting;
    if (!waiting || !waiting->infeasible) return false;
    ++hopeless;
  }
  return audit_.live() == hopeless;
}

World::Counts World::counts() const {
  return Counts{events_,
                crashes_,
                torn_commits_,
                lies_,
                audit_.published(),
                audit_.attempts(),
                absl::ToInt64Seconds(now_ - absl::FromUnixSeconds(1'700'000'000))};
}

std::string World::Run() {
  StartCoordinator();
  for (const auto& worker : workers_) worker->Start();
  for (int i = 0; i < options_.jobs; ++i) {
    After(Delay(0, kSubmitsEndMs), [this, i] { Submit(i, 0); });
  }
  After(Delay(1'000, 30'000), [this] { DisturbJobs(); });
  After(Delay(1'000, 30'000), [this] { DisturbCluster(); });
  After(kFaultsEnd, [this] { SettleDown(); });
  Watch();
  const absl::Time end = now_ + kPatience;
  while (!agenda_.empty() && now_ < end && audit_.violation().empty()) {
    if (!faults_ && events_ % 64 == 0 && AllEnded()) break;
    std::pop_heap(agenda_.begin(), agenda_.end(), Later);
    const Item item = std::move(agenda_.back());
    agenda_.pop_back();
    if (item.at > now_) {
      clock_.Advance(item.at - now_);
      now_ = item.at;
    }
    ++events_;
    item.action();
  }
  if (audit_.violation().empty()) audit_.ExamineEnd(acknowledged_, infeasible_);
  agenda_.clear();
  return audit_.violation();
}

}  // namespace offshoot::sim
