// The one loop that acts: what happened (requests, workers' reports, time) goes through the pure
// lifecycle and scheduler, is committed to the store as one transaction, and only then is answered
// and carried out.
//
//     requests ─┐                    ┌─ Next() ─┐            ┌─▶ answers
//     sessions ─┼─▶ queue ─▶ RunOnce ┤          ├─▶ Commit ──┼─▶ effects, assignments
//     timers  ──┘                    └Schedule()┘            └─▶ signals to watchers
//
// All that waits in the queue when a round begins shares one transaction, and so one sync (group
// commit). Effects are stored with the transition that wants them; what was not carried out before
// a crash is carried out again by Load. When a commit fails, everybody who took part is told,
// memory is thrown away and read again from the store, and sessions are closed so that workers come
// back and repeat what was not acknowledged.
//
// The public functions only queue and are thread-safe; callbacks run on the loop's thread and must
// not block. RunOnce is for one thread at a time: ControllerThread, a test, or the simulation.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/call_once.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/artifacts.h"
#include "coordinator/inputs.h"
#include "coordinator/job_signals.h"
#include "coordinator/lifecycle.h"
#include "coordinator/outputs.h"
#include "coordinator/scheduler.h"
#include "coordinator/session_messages.h"
#include "coordinator/store.h"

namespace offshoot {

struct ControllerOptions {
  LifecycleLimits lifecycle;
  absl::Duration lease = absl::Seconds(15);
  absl::Duration heartbeat_interval = absl::Seconds(3);
  absl::Duration unreachable_grace = absl::Minutes(10);
  absl::Duration artifact_grace = absl::Hours(24);  // unreferenced artifacts are kept that long
  absl::Duration output_retention = absl::Hours(24 * 30);
  std::size_t max_queue = 20'000;  // requests waiting for the loop
  std::size_t max_batch = 512;     // requests in one transaction
  std::string coordinator_id = "coordinator";
  std::string version;
  std::shared_ptr<const SchedulingPolicy> scheduling = std::make_shared<SchedulingPolicy>();
  // Another one only in the simulation, to see that a wrong plan is noticed.
  std::function<Plan(const ClusterSnapshot&, absl::Time)> schedule = Schedule;
};

// Looks up a job's inputs in a thread that may block and calls back from any thread.
using ResolveFunction = std::function<void(
    std::shared_ptr<const JobSpec> spec, std::function<void(absl::StatusOr<ResolvedInputs>)> done)>;

using SessionId = std::int64_t;

// Digests that lost their last reference are removed after this: somebody may be about to name
// them.
inline constexpr absl::Duration kCollectDelay = absl::Minutes(2);

// What changes too often for the store: why a job waits, and how far it is.
struct JobOverlay {
  std::optional<WaitingReason> waiting;
  std::optional<ProgressRecord> progress;
};

// The reasons of the last plan; looked up by readers, who make the index when they first need it.
class WaitingView {
 public:
  explicit WaitingView(std::vector<WaitingReason> reasons) : reasons_(std::move(reasons)) {}
  std::optional<WaitingReason> Find(const JobId& job_id);

 private:
  const std::vector<WaitingReason> reasons_;
  absl::once_flag once_;
  absl::flat_hash_map<JobId, std::size_t> index_;
};

struct WorkerStatus {
  WorkerRecord record;
  bool lost = false;
  absl::Time last_heartbeat = absl::InfinitePast();
  std::vector<JobId> running;
};

// Durations and counts for the metrics page; all since the start.
struct ControllerCounters {
  std::atomic<std::int64_t> commits{0};
  std::atomic<std::int64_t> commit_microseconds{0};
  std::atomic<std::int64_t> commit_failures{0};
  std::atomic<std::int64_t> submits{0};
  std::atomic<std::int64_t> schedules{0};
  std::atomic<std::int64_t> schedule_microseconds{0};
  std::atomic<std::int64_t> placements{0};
  std::atomic<std::int64_t> preemptions{0};
  std::atomic<std::int64_t> queue_wait_microseconds{0};  // queued or submitted until placed
  std::atomic<std::int64_t> fenced_reports{0};
  std::array<std::atomic<std::int64_t>, kJobStateCount> live_jobs{};
  std::atomic<std::int64_t> workers_connected{0};
  std::atomic<std::int64_t> workers_draining{0};
  std::atomic<std::int64_t> workers_lost{0};
};

class Controller {
 public:
  Controller(ControllerOptions options, Store& store, const Clock& clock,
             ArtifactDirectory& artifacts, AttemptOutputs& outputs, JobSignals& signals,
             ResolveFunction resolve);

  // --- for the loop's thread ---
  // Reads the store; every lease gets one full period from now.
  absl::Status Load();
  // One round; true: more is waiting already.
  bool RunOnce();
  // When to run again although nothing is posted.
  absl::Time NextDeadline() const;
  // Blocks until something is posted, Wake is called, or the time has come.
  void WaitForWork();
  void Wake();

  // --- users ---
  using JobCallback = std::function<void(absl::StatusOr<JobId>)>;
  using StatusCallback = std::function<void(const absl::Status&)>;
  // inputs: when they could be told at once. Answers RESOURCE_EXHAUSTED at once if the queue is
  // full.
  void SubmitJob(JobDefinition definition, std::optional<ResolvedInputs> inputs, JobCallback done);
  // event: CancelRequested, PauseRequested or ResumeRequested.
  void ChangeJob(const JobId& job_id, LifecycleEvent event, StatusCallback done);
  void RegisterBaseModel(BaseModelRecord model, std::vector<FileDigest> learned,
                         StatusCallback done);
  void ListWorkers(std::function<void(std::vector<WorkerStatus>)> done);
  void SetDraining(const WorkerId& worker_id, bool draining, bool checkpoint_running,
                   std::function<void(absl::StatusOr<WorkerStatus>)> done);
  JobOverlay Overlay(const JobId& job_id) const;
  // INVALID_ARGUMENT with the queues there are, if there is no such queue.
  absl::Status CheckQueue(const std::string& queue) const;

  // --- sessions ---
  SessionId OpenSession(std::shared_ptr<SessionPeer> peer);
  void CloseSession(SessionId session);
  // done runs when the loop has dealt with the message, so that a session has one under way at
  // most.
  using Done = std::function<void()>;
  void Register(SessionId session, RegisterInfo info, Done done);
  // By device id, TFLOP/s; what is no speed or no device of this worker is ignored.
  void SetDeviceSpeeds(SessionId session, std::map<std::string, double> speeds);
  void Heartbeat(SessionId session, std::vector<HeldAttemptInfo> held, std::int64_t free_disk_bytes,
                 Done done);
  void Report(SessionId session, AttemptReport report, Done done);
  // Told to every worker of the gang, and kept for those that are away.
  void Contribute(SessionId session, ContributionInfo contribution, Done done);
  // Not through the loop: false when the attempt is not this session's (it is dropped).
  bool AcceptsOutput(SessionId session, const JobId& job_id, std::int32_t attempt) const;
  bool IsCurrentAttempt(const JobId& job_id, std::int32_t attempt) const;
  void SetProgress(const JobId& job_id, ProgressRecord progress);

  const ControllerCounters& counters() const { return counters_; }

 private:
  struct WorkerState {
    WorkerRecord record;
    SessionId session = 0;  // 0: not connected
    absl::Time last_seen;
    std::int64_t free_disk_bytes = 0;
    std::set<JobId> leased = {};                         // jobs whose open attempt has ranks here
    std::shared_ptr<const WorkerOffer> offer = nullptr;  // made of record
  };
  struct SessionState {
    std::shared_ptr<SessionPeer> peer;
    WorkerId worker_id;
  };
  // Of an open attempt: each of its workers renews its own part.
  struct Lease {
    std::int32_t attempt = 0;
    std::map<WorkerId, absl::Time> expires;
    absl::Time runtime_ends = absl::InfiniteFuture();
    // Of a gang whose ranks exchange artifacts: by rank, then by round, the newest two of each.
    // Not stored: after a restart the workers say them again.
    std::map<int, std::map<std::int64_t, FileEntry>> contributions = {};
  };
  // A gang that fell apart, until the cause is heard or waited for long enough.
  struct GangEnd {
    std::int32_t attempt = 0;
    AttemptEnded event;
    absl::Time deadline;
  };
  struct Preflight {
    WorkerId worker_id;
    SessionId session = 0;
    absl::Time expires;  // unless the worker says before that it holds the check
  };
  // Who may append to the outputs of a job's attempt (the worker of rank 0); read without the loop.
  struct OutputOwner {
    std::int32_t attempt = 0;
    WorkerId worker_id;
  };

  bool Post(std::function<void()> task);  // false: the queue is full
  void PostAlways(std::function<void()> task);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(queue_mutex_);

  // Parts of a round (controller.cc).
  void Reset();
  void Commit();
  void Recover(const absl::Status& status);
  void ExecuteEffects();
  void Execute(const StoredEffect& effect);
  void ResolveInputs(const StoredEffect& effect);
  void Publish(const StoredEffect& effect);
  void CollectCheckpointFiles();
  void AfterCommit(std::function<void(const absl::Status&)> action);
  void UpdateCounters();

  // Jobs (controller_jobs.cc).
  JobRecord* FindJob(const JobId& job_id);
  void DoSubmit(JobDefinition definition, std::optional<ResolvedInputs> inputs, JobCallback done);
  void DoChange(const JobId& job_id, const LifecycleEvent& event, StatusCallback done);
  void ApplyInputs(const JobId& job_id, absl::StatusOr<ResolvedInputs> inputs);
  void AnswerPreflightFromCache(const JobId& job_id);
  void PassPreflight(const JobId& job_id, const std::string& result_json);
  absl::Status Apply(const JobId& job_id, const LifecycleEvent& event);
  void Take(Transition transition, bool is_new);
  void NoteReferences(const JobRecord& before, const JobRecord& after);
  void UpdateIndexes(const JobRecord& job);
  void LoseAttempt(const JobId& job_id, absl::string_view reason_code, absl::string_view message);
  void Fence(const JobId& job_id, const AttemptRecord& attempt, const WorkerId& but_not);

  // Sessions (controller_sessions.cc).
  WorkerState* WorkerOf(SessionId session);
  void Send(SessionId session, SessionMessage message);
  void DoRegister(SessionId session, RegisterInfo info);
  void DoCloseSession(SessionId session);
  void DoHeartbeat(SessionId session, const std::vector<HeldAttemptInfo>& held);
  void DoReport(SessionId session, AttemptReport report);
  void DoPreflightReport(SessionId session, const WorkerState& worker, const AttemptReport& report);
  void DoAttemptReport(SessionId session, WorkerState& worker, AttemptReport report);
  void ApplyReport(AttemptReport report, SessionId session);
  void Reconcile(SessionId session, WorkerState& worker, const std::vector<HeldAttemptInfo>& held);
  void SkipWhatIsLost(const WorkerId& worker_id, const HeldAttemptInfo& held);
  void Acknowledge(SessionId session, const AttemptReport& report, bool fenced);
  WorkerStatus StatusOf(const WorkerState& worker) const;

  // Gangs over several workers (controller_gangs.cc).
  void ApplyMemberReport(AttemptReport report, SessionId session, const WorkerId& worker_id);
  void ApplyListening(const JobId& job_id, const ListeningReport& listening);
  void SendMeetingPlace(const JobRecord& job, const WorkerState& worker);
  void DoContribute(SessionId session, const ContributionInfo& contribution);
  void SendContributions(const JobId& job_id, const WorkerState& worker);
  void LetContributionsGo(Lease& lease);
  void EndGang(const JobId& job_id, const WorkerId& worker_id, AttemptEnded event);
  void RecoverGangEnd(const JobRecord& job);
  void FinishGang(const JobId& job_id);
  void FinishGangsWithout(const WorkerState& worker);
  void HandleGangTimers();
  void GrowIfPossible(const JobId& job_id);

  // What the scheduler sees, kept up to date job by job (controller_cluster.cc).
  void UpdateCluster(const JobRecord& job);
  void UpdateWaiting(const JobRecord& job);
  void UpdateRunning(const JobRecord& job);
  void RemoveRunning(const JobId& job_id);
  void UpdateOffer(WorkerState& worker);
  std::shared_ptr<const DeviceSort> SharedSort(DeviceSort sort);
  std::shared_ptr<const JobClass> ClassOf(const JobDefinition& definition,
                                          const MemoryNeeds* memory = nullptr);
  void AccrueUse(const std::string& team, int more_devices);
  void RecoverUse(const std::vector<JobRecord>& jobs);
  std::size_t CompleteSnapshot();
  void EstimateEnds();

  // Time and placement (controller_schedule.cc).
  void HandleTimers();
  void ScheduleNow();
  void ApplyPlan(Plan plan);
  void ApplyStart(const Start& start);
  void SendAssignment(const JobId& job_id, std::int32_t attempt);
  void SendPart(const JobRecord& job, std::int32_t attempt, const WorkerState& worker);

  const ControllerOptions options_;
  Store& store_;
  const Clock& clock_;
  ArtifactDirectory& artifacts_;
  AttemptOutputs& outputs_;
  JobSignals& signals_;
  const ResolveFunction resolve_;
  ControllerCounters counters_;

  mutable absl::Mutex queue_mutex_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(queue_mutex_);
  bool woken_ ABSL_GUARDED_BY(queue_mutex_) = false;
  std::atomic<SessionId> next_session_{1};

  // The loop's own: only RunOnce and what it calls touch these.
  bool loaded_ = false;
  absl::Time retry_load_ = absl::InfinitePast();
  absl::Time now_ = absl::InfinitePast();  // of this round
  std::int64_t version_ = 0;
  std::int64_t last_effect_id_ = 0;
  std::map<JobId, JobRecord> jobs_;  // live ones: not terminal, or with an open attempt
  // Validating, with inputs known, by the key of the answer they wait for.
  std::map<std::string, std::set<JobId>> unchecked_;
  // For the scheduler: `waiting` has the queued jobs and `running` the open attempts, in any order;
  // the rest is filled in for each plan.
  ClusterSnapshot cluster_;
  absl::flat_hash_map<JobId, std::size_t> waiting_index_;
  absl::flat_hash_map<JobId, std::size_t> running_index_;
  std::map<std::string, std::shared_ptr<const JobClass>> job_classes_;
  absl::flat_hash_map<DeviceSort, std::shared_ptr<const DeviceSort>> device_sorts_;
  struct TeamUseState {
    TeamUseRecord record;
    int devices = 0;  // held now
  };
  std::map<std::string, TeamUseState> team_use_;
  std::map<JobId, Lease> leases_;  // of open attempts
  std::map<WorkerId, WorkerState> workers_;
  std::map<SessionId, SessionState> sessions_;
  std::map<JobId, Preflight> preflights_;
  std::map<JobId, GangEnd> gang_ends_;
  std::map<JobId, WorkerId> failed_checks_;          // where a job's check failed last
  absl::Time next_expiry_ = absl::InfiniteFuture();  // no lease ends before this
  bool schedule_wanted_ = false;
  bool workers_changed_ = false;
  absl::Time schedule_not_before_ = absl::InfinitePast();
  absl::Time look_again_ = absl::InfiniteFuture();
  std::deque<std::pair<std::string, absl::Time>> collectable_;  // digests no job names any more

  // The round's transaction, and what follows it.
  StoreWrite write_;
  std::set<JobId> changed_jobs_;
  std::set<JobId> new_jobs_;
  std::map<std::string, JobId> new_requests_;
  std::vector<std::int64_t> done_effects_;
  std::vector<StoredEffect> effects_;  // to be carried out
  std::vector<std::function<void(const absl::Status&)>> after_commit_;

  mutable absl::Mutex view_mutex_;
  std::shared_ptr<WaitingView> waiting_view_ ABSL_GUARDED_BY(view_mutex_);
  absl::flat_hash_map<JobId, ProgressRecord> progress_ ABSL_GUARDED_BY(view_mutex_);
  absl::flat_hash_map<JobId, OutputOwner> output_owners_ ABSL_GUARDED_BY(view_mutex_);
  std::deque<JobId> past_owners_ ABSL_GUARDED_BY(view_mutex_);  // of jobs that ended, oldest first
  absl::flat_hash_map<SessionId, WorkerId> session_workers_ ABSL_GUARDED_BY(view_mutex_);
};

}  // namespace offshoot
