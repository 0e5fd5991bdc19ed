// What the coordinator knows about jobs, attempts, workers and models: plain values, as the store
// keeps them and the lifecycle computes with them. No protobuf here; service/convert.h is the door.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/digest.h"
#include "common/ids.h"
#include "common/job_spec.h"
#include "coordinator/memory_needs.h"

namespace offshoot {

// The numbers are those of offshoot.v1.JobState and of the store: never change one.
enum class JobState : int {
  kValidating = 1,
  kQueued = 2,
  kStarting = 3,
  kRunning = 4,
  kPublishing = 5,
  kSucceeded = 6,
  kPaused = 7,
  kFailed = 8,
  kCancelled = 9,
};
inline constexpr int kJobStateCount = 9;

absl::string_view JobStateName(JobState state);  // "queued"
inline bool IsTerminal(JobState state) {
  return state == JobState::kSucceeded || state == JobState::kFailed ||
         state == JobState::kCancelled;
}

// The whole state of a stopped trainer: what the next attempt goes on from.
struct CheckpointRecord {
  std::int64_t step = 0;
  std::int32_t attempt = 0;  // that wrote it
  std::vector<FileEntry> files;
  bool operator==(const CheckpointRecord&) const = default;
};

// The part of an attempt that runs on one worker: ranks first_rank, first_rank + 1, ... one a
// device, in the order of devices.
struct GangMember {
  WorkerId worker_id;
  std::string worker_name;
  std::vector<std::string> devices;
  int first_rank = 0;
  std::int64_t acknowledged_sequence = 0;  // newest event of this worker that is durable here
  bool ended = false;                      // this worker said that its ranks ended
  bool hung = false;                       // and that one of them hung
  bool left = false;  // and that neither the work was done nor a stop asked for: the gang ends
  bool operator==(const GangMember&) const = default;
};

struct AttemptRecord {
  std::int32_t number = 0;  // from 1
  // Every worker with ranks of the attempt, the one of rank 0 first; it speaks for the gang.
  // Never empty once placed.
  std::vector<GangMember> members;
  std::string lease_id;
  // What its devices can do, for a continuation that must be bit-identical
  // (DeviceSort::device_class).
  std::string device_class;
  std::int64_t first_step = 0;  // 0: none trained
  std::int64_t last_step = 0;
  std::string reason_code;  // why it ended
  std::string message;
  absl::Time started = absl::InfinitePast();   // when it was placed
  absl::Time finished = absl::InfinitePast();  // InfinitePast while open
  // Open: its worker may still run it, so its devices are taken, whatever the job's state is.
  bool open = true;
  // Where rank 0 of a gang over several workers listens; port 0: not known yet.
  std::string meet_address;
  int meet_port = 0;

  const GangMember& leader() const { return members.front(); }
  int world_size() const;
  // Null where the worker has no rank of it.
  const GangMember* MemberOn(const WorkerId& worker_id) const;
  GangMember* MemberOn(const WorkerId& worker_id);
  std::string WorkerNames() const;  // "ant, bee and 2 more"
  bool operator==(const AttemptRecord&) const = default;
};

// What the trainer left: verified by the worker, uploaded, ready to be published.
struct ResultRecord {
  std::int32_t attempt = 0;
  std::vector<FileEntry> files;
  std::optional<double> base_eval_loss;
  std::optional<double> eval_loss;
  bool operator==(const ResultRecord&) const = default;
};

// Something an attempt needs on its worker's disk; spec_pointer (RFC 6901) says where its path
// belongs in the trainer's spec.
struct InputRecord {
  std::string spec_pointer;
  std::vector<FileEntry> files;     // one with path "" for a plain file
  std::string shared_path;          // empty: only as artifacts
  std::string digest;               // of the set of files
  std::string hub_repository = {};  // org/name of a model hub; empty: none
  std::string hub_commit = {};      // of it
  bool operator==(const InputRecord&) const = default;
};

struct JobInputs {
  std::vector<InputRecord> inputs;
  std::string preflight_key;  // names the answer to "can this be trained?"
  bool operator==(const JobInputs&) const = default;
};

// What a job asks of a worker.
struct JobRequirements {
  int ranks = 1;
  // How far the number of ranks may go below and above `ranks`; 0: not at all.
  int min_ranks = 0;
  int max_ranks = 0;
  std::string device_kind;            // "", "cpu", "cuda"
  std::int64_t min_memory_bytes = 0;  // per device
  std::vector<std::string> gpu_models;
  std::map<std::string, std::string> labels;
  bool bf16 = false;
  // Ranks on several workers need not reach each other: what they exchange goes through the
  // coordinator.
  bool exchange_artifacts = false;
  MemoryNeeds memory = {};  // known once it is preflighted
  bool operator==(const JobRequirements&) const = default;
};

// What never changes after the submit; shared by all versions of the job's record.
struct JobDefinition {
  JobId job_id;
  std::string request_id;
  std::string name;
  std::string team;
  std::string queue = "default";
  int priority = 0;  // higher first
  std::string spec_yaml;
  std::string spec_digest;
  absl::Time created = absl::InfinitePast();
  absl::Duration max_runtime = absl::InfiniteDuration();
  JobRequirements requirements;
  std::shared_ptr<const JobSpec> spec;  // null when read back from the store: parse spec_yaml
};

// What a rank did in a step; units as in offshoot.v1.RankMetrics.
struct RankRecord {
  double share = 0;
  double tokens_per_second = 0;
  double wait_seconds = 0;
  bool operator==(const RankRecord&) const = default;
};
inline constexpr int kMaxRankRecords = 64;

// How far a job is; units as in offshoot.v1.Progress.
struct ProgressRecord {
  std::int64_t step = 0;
  std::int64_t total_steps = 0;
  double train_loss = 0;
  double tokens_per_second = 0;
  std::int64_t tokens = 0;
  int estimated_seconds_left = 0;
  std::string stage;
  std::vector<RankRecord> ranks;
  std::optional<double> base_eval_loss;
  std::optional<double> eval_loss;
};

// Why a running attempt was asked to stop.
enum class StopIntent : int { kNone = 0, kPause = 1, kPreempt = 2 };

struct JobRecord {
  std::shared_ptr<const JobDefinition> definition;
  JobState state = JobState::kValidating;
  std::string reason_code;
  std::string message;
  std::string culprit;
  std::string log_tail;
  std::shared_ptr<const JobInputs> inputs;  // null until resolved
  bool preflighted = false;
  std::shared_ptr<const MemoryNeeds> memory;  // null: not known
  StopIntent stop_intent = StopIntent::kNone;
  int failures = 0;                              // since the last new checkpoint
  absl::Time not_before = absl::InfinitePast();  // backoff
  absl::Time started = absl::InfinitePast();     // first time it was placed
  absl::Time finished = absl::InfinitePast();
  std::int64_t total_steps = 0;
  ProgressRecord progress;  // as it was at the last transition
  std::optional<CheckpointRecord> checkpoint;
  std::optional<ResultRecord> result;
  std::string derivative_id;
  std::vector<AttemptRecord> attempts;
  std::int64_t last_sequence = 0;  // of its lifecycle events

  const JobId& id() const { return definition->job_id; }
  std::int32_t attempt_number() const { return attempts.empty() ? 0 : attempts.back().number; }
  bool has_open_attempt() const { return !attempts.empty() && attempts.back().open; }
  std::vector<WorkerId> WorkersThatHung() const;  // in any attempt; sorted
};

// One lifecycle event, as WatchJob tells it. Sequences are dense from 1 within a job.
struct JobEventRecord {
  JobId job_id;
  std::int64_t sequence = 0;
  absl::Time time = absl::InfinitePast();
  JobState state = JobState::kValidating;  // after the event
  std::int32_t attempt = 0;
  std::string type;
  std::string reason_code;
  std::string message;
  std::int64_t step = 0;
  bool operator==(const JobEventRecord&) const = default;
};

// Device time a team has used, halved every SchedulingPolicy::usage_half_life.
struct TeamUseRecord {
  std::string team;
  double device_seconds = 0;  // at as_of
  absl::Time as_of = absl::InfinitePast();
  bool operator==(const TeamUseRecord&) const = default;
};

struct DeviceRecord {
  std::string device_id;  // cpu:0
  std::string kind;       // cpu, cuda
  int threads = 0;
  std::int64_t memory_bytes = 0;
  std::string model;
  std::string driver_version;
  double speed = 0;  // matrix products, TFLOP/s as measured by the worker; 0: not measured
  bool operator==(const DeviceRecord&) const = default;
};

struct WorkerRecord {
  WorkerId worker_id;
  IncarnationId incarnation_id;
  std::string name;
  std::string version;
  std::string hostname;
  std::string cpu_model;
  int cpu_cores = 0;
  std::int64_t memory_bytes = 0;
  bool bf16 = false;
  std::string boot_id;
  std::string address;  // where ranks on other workers reach its own; empty: not at all
  std::vector<std::string> instruction_sets;
  std::vector<DeviceRecord> devices;
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> taints;  // labels that a job must ask for
  bool draining = false;
  bool operator==(const WorkerRecord&) const = default;
};

struct BaseModelRecord {
  std::string name;
  std::string digest;
  std::string base_model_id;
  std::string license;
  std::string path;  // shared path under an allowed root, or empty
  std::vector<FileEntry> files;
  absl::Time created = absl::InfinitePast();
  std::string team;  // of what was pushed to the HTTP port; empty: registered, everybody's
  bool operator==(const BaseModelRecord&) const = default;
};

struct DerivativeRecord {
  DerivativeId derivative_id;
  JobId job_id;
  std::string name;
  std::string team;
  std::string base_model_id;
  std::string base_model_digest;
  std::string digest;
  std::vector<FileEntry> files;
  std::optional<double> base_eval_loss;
  std::optional<double> eval_loss;
  absl::Time created = absl::InfinitePast();
  bool operator==(const DerivativeRecord&) const = default;
};

}  // namespace offshoot
