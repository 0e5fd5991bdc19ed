// Everything the coordinator must not forget, behind one interface: jobs with their attempts,
// lifecycle events and pending effects, workers, models, and what was learnt about files.
//
// One StoreWrite is one transaction: all of it is durable when Commit returns, or none. The
// controller gathers what many callers want into one write (group commit), so a sync is shared.
// Each commit raises the store's version by one; a write made from an old version can be refused,
// which is how a plan computed from a stale snapshot is kept from being applied.
// Implementations are thread-safe; reads see whole transactions only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/lifecycle.h"
#include "coordinator/records.h"

namespace offshoot {

struct StoredEffect {
  std::int64_t effect_id = 0;
  Effect effect;
};

// Names a file's bytes without reading them; the digest is taken again when anything differs.
struct FileIdentity {
  std::string path;
  std::int64_t size_bytes = 0;
  std::int64_t modified_ns = 0;
  std::uint64_t inode = 0;
  bool operator==(const FileIdentity&) const = default;
};

struct FileDigest {
  FileIdentity identity;
  std::string digest;
};

struct PreflightAnswer {
  std::string key;
  std::string result_json;
};

// Which artifacts a job, model or derivative needs; replaces what the owner needed before.
struct References {
  std::string owner;  // "job:<id>", "derivative:<id>", "model:<name>"
  std::vector<std::string> digests;
};

struct StoreWrite {
  // Commit answers ABORTED when the store is at another version.
  std::optional<std::int64_t> if_version;
  std::vector<JobRecord> new_jobs;
  std::vector<JobRecord> jobs;  // changed; of several with one id the last counts
  std::vector<std::pair<JobId, std::shared_ptr<const JobInputs>>> inputs;
  std::vector<JobEventRecord> events;
  std::vector<StoredEffect> new_effects;  // ids are the caller's, unique for ever
  std::vector<std::int64_t> done_effects;
  std::vector<WorkerRecord> workers;
  std::vector<PreflightAnswer> preflights;
  std::vector<FileDigest> file_digests;
  std::vector<BaseModelRecord> base_models;
  std::vector<DerivativeRecord> derivatives;
  std::vector<References> references;
  std::vector<TeamUseRecord> team_use;  // replaces the team's

  bool empty() const;
};

struct JobFilter {
  std::vector<JobState> states;  // empty: all
  std::string team;              // empty: all
  std::string name_contains;     // empty: all
  JobId before;                  // only older jobs; empty: from the newest
  int limit = 50;
};

struct DerivativeFilter {
  std::string base_model_digest;
  std::string team;
  DerivativeId before;  // page: only after this one in the order of the list
  int limit = 50;
};

// What a coordinator needs in memory to go on.
struct LoadedState {
  std::int64_t version = 0;
  std::int64_t last_effect_id = 0;
  std::vector<JobRecord> jobs;  // not terminal, or with an open attempt
  std::vector<StoredEffect> effects;
  std::vector<WorkerRecord> workers;
  std::vector<TeamUseRecord> team_use;
};

class Store {
 public:
  virtual ~Store() = default;

  // The new version. ABORTED: the version is not if_version. ALREADY_EXISTS: a new job's id or
  // request_id is taken. RESOURCE_EXHAUSTED: the disk is full. On any error nothing was written.
  virtual absl::StatusOr<std::int64_t> Commit(const StoreWrite& write) = 0;

  virtual absl::StatusOr<LoadedState> Load() = 0;
  // NOT_FOUND naming the job.
  virtual absl::StatusOr<JobRecord> GetJob(const JobId& job_id) = 0;
  virtual absl::StatusOr<std::optional<JobRecord>> FindRequest(const std::string& request_id) = 0;
  // Newest first.
  virtual absl::StatusOr<std::vector<JobRecord>> ListJobs(const JobFilter& filter) = 0;
  virtual absl::StatusOr<std::vector<JobEventRecord>> ListEvents(const JobId& job_id,
                                                                 std::int64_t from_sequence,
                                                                 int limit) = 0;
  virtual absl::StatusOr<std::optional<std::string>> FindPreflight(const std::string& key) = 0;
  virtual absl::StatusOr<std::optional<std::string>> FindFileDigest(
      const FileIdentity& identity) = 0;
  // Files that had these bytes when they were read last.
  virtual absl::StatusOr<std::vector<FileIdentity>> FindFilesByDigest(
      const std::string& digest) = 0;
  // NOT_FOUND naming the model.
  virtual absl::StatusOr<BaseModelRecord> GetBaseModel(const std::string& name) = 0;
  // By name, after `after`.
  virtual absl::StatusOr<std::vector<BaseModelRecord>> ListBaseModels(const std::string& after,
                                                                      int limit) = 0;
  virtual absl::StatusOr<DerivativeRecord> GetDerivative(const DerivativeId& derivative_id) = 0;
  // Newest first.
  virtual absl::StatusOr<std::vector<DerivativeRecord>> ListDerivatives(
      const DerivativeFilter& filter) = 0;
  virtual absl::StatusOr<bool> IsReferenced(const std::string& digest) = 0;
};

}  // namespace offshoot
