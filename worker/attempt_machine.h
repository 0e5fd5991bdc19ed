// One attempt (or preflight) on this worker, as a pure state machine: inputs in, actions out.
// No process, socket, disk or clock in it; AttemptRunner carries the actions out and the agent
// feeds the answers back. Not thread-safe.
//
//   preparing ──inputs ready──▶ running ──exit 0──▶ verifying ──equal──▶ uploading
//       │                          │                    │                    │ all files there
//       │ failed, stopped          │ stopped, failed    │ differs            ▼
//       └──────────────────────────┴────────────────────┴───────────────▶ delivering ──▶ over
//
// A worker that does not lead its gang launches when it also knows where rank 0 listens (MeetAt),
// unless the ranks exchange artifacts:
//
//   rank says contribution ──▶ stored ──▶ SendContribution ──▶ coordinator ──▶ OnContribution of
//   every worker of the gang ──▶ fetched, or the file that is here ──▶ ranks, by their control
//   lines
//
// While ranks train they say each second what they do; one that does not get on is named and ends
// the attempt.
//
// delivering: complete checkpoints are uploaded first, then the one terminal event (ended, result
// or preflight) is emitted; when the coordinator has acknowledged it the attempt is over and
// Forget is asked for. Events are numbered from 1 and kept until acknowledged.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "offshoot/v1/cluster.pb.h"
#include "worker/attempt_end.h"
#include "worker/trainer_event.h"
#include "worker/trainer_process.h"

namespace offshoot::worker {

// Preflight is attempt 0 of its job.
struct AttemptKey {
  JobId job_id;
  AttemptNumber attempt = AttemptNumber{0};
  auto operator<=>(const AttemptKey&) const = default;
};
std::string ToString(const AttemptKey& key);  // for logs and directory names: job-x.3

// --- what the machine asks for ---

// Where the ranks of a gang over several workers meet.
struct MeetingPlace {
  std::string address;
  int port = 0;
};

struct PrepareInputs {};  // answered by InputsReady or TaskFailed
// train or preflight; answered by Launched or TaskFailed. The leader of a gang over several workers
// chooses the place: Listening comes after.
struct LaunchTrainer {
  std::optional<MeetingPlace> meet_at;
};
struct LaunchVerify {};    // the same; its exit comes as TrainerExited
struct UploadCheckpoint {  // answered by CheckpointUploaded or TaskFailed
  std::int64_t step = 0;
  std::string path;
};
struct UploadResult {  // answered by ResultUploaded or TaskFailed
  std::string path;
};
struct EmitEvent {  // make durable, then send when there is a session
  v1::AttemptEvent event;
};
struct SendOutput {  // may be dropped
  v1::AttemptOutput output;
};
struct SendControl {
  std::string line;
};
struct TerminateTrainer {};  // SIGTERM, then SIGKILL
struct CancelTasks {};       // downloads and uploads that run or wait are given up
struct StoreContribution {   // answered by ContributionStored or TaskFailed
  int rank = 0;              // of the whole gang
  std::int64_t round = 0;
  std::string path;
};
struct FetchContribution {  // answered by ContributionFetched or TaskFailed
  int rank = 0;
  std::int64_t round = 0;
  v1::File file;
};
struct SendContribution {  // when there is a session; it is sent again after each Welcome
  v1::Contribution contribution;
};
struct Forget {};  // nothing of it is needed any more: remove its directory

using AttemptAction =
    std::variant<PrepareInputs, LaunchTrainer, LaunchVerify, UploadCheckpoint, UploadResult,
                 EmitEvent, SendOutput, SendControl, TerminateTrainer, CancelTasks, Forget,
                 StoreContribution, FetchContribution, SendContribution>;
using AttemptActions = std::vector<AttemptAction>;

// --- what it is told ---

struct CheckpointOnDisk {
  std::int64_t step = 0;
  std::string path;
};
struct Preparing {  // how far PrepareInputs is, for people
  std::string stage;
};
struct InputsReady {};
struct Launched {};
struct Listening {
  MeetingPlace at;
};
// Failed for good (passing trouble is retried below this). ABORTED: the coordinator says the
// attempt is no longer ours. CANCELLED: given up because of CancelTasks.
enum class AttemptTask { kPrepareInputs, kLaunch, kUploadCheckpoint, kUploadResult, kExchange };
struct TaskFailed {
  AttemptTask task = AttemptTask::kPrepareInputs;
  absl::Status status;
};
struct CheckpointUploaded {
  v1::Checkpoint checkpoint;
};
struct ResultUploaded {
  std::vector<v1::File> files;
};
struct ContributionStored {
  int rank = 0;
  std::int64_t round = 0;
  v1::File file;
  std::string path;
};
struct ContributionFetched {
  int rank = 0;
  std::int64_t round = 0;
  std::string path;
};
struct TrainerSaid {
  int rank = 0;
  TrainerEvent event;
};
struct TrainerEnded {
  TrainerExit exit;
  std::optional<CheckpointOnDisk> newest_checkpoint;  // complete, found on disk after the end
};

using AttemptInput = std::variant<Preparing, InputsReady, Launched, Listening, TaskFailed,
                                  CheckpointUploaded, ResultUploaded, TrainerSaid, TrainerEnded,
                                  ContributionStored, ContributionFetched>;

// What the journal knows of an attempt of an earlier process of this worker.
struct RecoveredAttempt {
  v1::Assignment assignment;
  std::vector<v1::AttemptEvent> events;  // all, oldest first
  std::int64_t acknowledged_sequence = 0;
  std::optional<CheckpointOnDisk> newest_checkpoint;
  std::int64_t last_step = 0;  // the last step known to have been trained
};

// Reason codes with which the worker itself stops attempts.
inline constexpr char kWorkerLeaving[] = "WORKER_LEAVING";
inline constexpr char kCoordinatorUnreachable[] = "COORDINATOR_UNREACHABLE";

struct AttemptLimits {
  // A trainer asked to checkpoint and stop is ended when it has not done so by then.
  absl::Duration stop_timeout = absl::Minutes(5);
  // A rank that trains and gets on with nothing for so long has hung; one that waits for other
  // ranks is given twice that.
  absl::Duration progress_timeout = absl::Minutes(10);
  // A rank that has not begun to train so long after its start has hung.
  absl::Duration start_timeout = absl::Minutes(30);
  // A check of base model and data that takes longer has hung.
  absl::Duration preflight_timeout = absl::Minutes(30);
};

class AttemptMachine {
 public:
  AttemptMachine(v1::Assignment assignment, AttemptLimits limits);

  AttemptActions Start();
  // Instead of Start, after a restart of the worker: delivers what the attempt left and ends it.
  AttemptActions Recover(const RecoveredAttempt& recovered, absl::Time now);

  AttemptActions OnInput(const AttemptInput& input, absl::Time now);
  AttemptActions OnEventAck(std::int64_t sequence, bool fenced, absl::Time now);
  // checkpoint: write one first. A repeat may only become more urgent.
  AttemptActions OnStop(bool checkpoint, const std::string& reason_code, absl::Time now);
  AttemptActions OnCheckpointNow();
  AttemptActions OnMeetAt(const MeetingPlace& place);
  AttemptActions OnContribution(const v1::Contribution& contribution);
  AttemptActions OnTick(absl::Time now);

  // When OnTick wants to be called next.
  absl::Time deadline() const { return std::min({deadline_, start_deadline_, progress_deadline_}); }
  const AttemptKey& key() const { return key_; }
  const v1::Assignment& assignment() const { return assignment_; }
  bool leads() const { return assignment_.first_rank() == 0; }
  bool spans_workers() const { return assignment_.world_size() > assignment_.device_ids_size(); }
  // Its ranks do not meet: what they exchange goes through the coordinator.
  bool exchanges() const { return assignment_.exchange_artifacts() && spans_workers(); }
  bool preflight() const { return assignment_.kind() == v1::ASSIGNMENT_KIND_PREFLIGHT; }
  // Nothing runs and nothing is left to say but what awaits acknowledgement.
  bool delivered() const { return phase_ == Phase::kOver; }
  // A trainer (or verify) may be running.
  bool process_wanted() const { return process_wanted_; }
  const std::deque<v1::AttemptEvent>& unacknowledged() const { return unacknowledged_; }
  v1::HeldAttempt Held() const;
  // The newest of the ranks here: what the coordinator is to be told after each Welcome.
  std::vector<v1::Contribution> contributions() const;

 private:
  enum class Phase { kPreparing, kRunning, kVerifying, kUploading, kDelivering, kOver };
  void Handle(const Preparing& preparing, absl::Time now);
  void Handle(const InputsReady&, absl::Time now);
  void Handle(const Launched&, absl::Time now);
  void Handle(const Listening& listening, absl::Time now);
  void Handle(const TaskFailed& failed, absl::Time now);
  void Handle(const CheckpointUploaded& uploaded, absl::Time now);
  void Handle(const ResultUploaded& uploaded, absl::Time now);
  void Handle(const TrainerSaid& said, absl::Time now);
  void Handle(const TrainerEnded& ended, absl::Time now);
  void Handle(const ContributionStored& stored, absl::Time now);
  void Handle(const ContributionFetched& fetched, absl::Time now);
  void HandleEvent(const TrainerStage& stage, absl::Time now);
  void HandleEvent(const TrainerPreflight& preflight, absl::Time now);
  void HandleEvent(const TrainerStarted& started, absl::Time now);
  void HandleEvent(const TrainerMetrics& metrics, absl::Time now);
  void HandleEvent(const TrainerEval& eval, absl::Time now);
  void HandleEvent(const TrainerCheckpoint& checkpoint, absl::Time now);
  void HandleEvent(const TrainerSample& sample, absl::Time now);
  void HandleEvent(const TrainerActivity& activity, absl::Time now);
  void HandleEvent(const TrainerResult& result, absl::Time now);
  void HandleEvent(const TrainerStopped& stopped, absl::Time now);
  void HandleEvent(const TrainerFailed& failed, absl::Time now);
  void HandleEvent(const TrainerContribution& contribution, absl::Time now);

  void LaunchWhenReady();
  void NoteActivity(int rank, const TrainerActivity& activity, absl::Time now);
  void NoteBegun(int rank);
  void EndUnlessBegun();
  void LookForHungRanks(absl::Time now);
  void GiveUp(AttemptEnd end);
  bool IsOfARankHere(int rank) const;
  v1::Contribution MakeContribution(int rank, std::int64_t round, const v1::File& file) const;
  void HandOver(int rank, std::int64_t round, const std::string& path);
  void OnVerifyEnded(const TrainerExit& exit, absl::Time now);
  void QueueCheckpoint(const CheckpointOnDisk& checkpoint);
  void StartNextUpload();
  void Finish(AttemptEnd end, absl::Time now);
  void FinishStopped(absl::Time now);
  void OnTrainEnded(const TrainerExit& exit, absl::Time now);
  void DeliverWhenReady(absl::Time now);
  void EmitTerminal(absl::Time now);
  void DropEverything();
  v1::AttemptEvent NewEvent(absl::Time now);
  void Emit(v1::AttemptEvent event);
  v1::AttemptOutput NewOutput() const;
  AttemptActions Take();

  const v1::Assignment assignment_;
  const AttemptKey key_;
  const AttemptLimits limits_;
  AttemptActions actions_;  // of the call under way

  Phase phase_ = Phase::kPreparing;
  bool process_wanted_ = false;  // from asking for the launch to hearing of the end
  bool launched_ = false;
  bool terminating_ = false;
  bool fenced_ = false;
  absl::Time deadline_ = absl::InfiniteFuture();
  bool inputs_ready_ = false;
  std::optional<MeetingPlace> meet_at_;

  std::set<int> begun_;                                 // ranks here that have said what they do
  absl::Time start_deadline_ = absl::InfiniteFuture();  // for the others
  // Of the ranks here that train.
  struct RankActivity {
    TrainerActivity activity;
    absl::Time heard;
  };
  std::map<int, RankActivity> activities_;
  absl::Time progress_deadline_ = absl::InfiniteFuture();

  struct Stop {
    bool checkpoint = false;
    std::string reason_code;
  };
  std::optional<Stop> stop_;
  std::optional<AttemptEnd> end_;
  std::string log_tail_;

  // What the trainer said.
  v1::Progress progress_;
  std::int64_t first_step_ = 0;
  std::int64_t last_step_ = 0;
  std::optional<TrainerResult> result_;
  std::optional<TrainerPreflight> preflight_;
  std::optional<TrainerFailed> failed_;
  int failed_rank_ = 0;
  bool stopped_ = false;

  // Checkpoints: announced, not uploaded yet; the first is under way when uploading_.
  std::deque<CheckpointOnDisk> checkpoints_;
  bool uploading_ = false;
  std::int64_t newest_checkpoint_step_ = 0;

  // Contributions by rank of the gang, then by round; only the newest two rounds of each.
  struct OwnContribution {
    v1::File file;
    std::string path;
  };
  std::map<int, std::map<std::int64_t, OwnContribution>> stored_;
  std::map<int, std::set<std::int64_t>> asked_for_;                   // of other workers' ranks
  std::map<int, std::map<std::int64_t, std::string>> for_the_ranks_;  // paths

  std::int64_t next_sequence_ = 1;
  std::deque<v1::AttemptEvent> unacknowledged_;
};

}  // namespace offshoot::worker
