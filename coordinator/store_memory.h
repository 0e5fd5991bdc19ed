// The store without a disk: for tests and the simulation. Forgets everything when destroyed.
// Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/store.h"

namespace offshoot {

class MemoryStore : public Store {
 public:
  absl::StatusOr<std::int64_t> Commit(const StoreWrite& write) override;
  absl::StatusOr<LoadedState> Load() override;
  absl::StatusOr<JobRecord> GetJob(const JobId& job_id) override;
  absl::StatusOr<std::optional<JobRecord>> FindRequest(const std::string& request_id) override;
  absl::StatusOr<std::vector<JobRecord>> ListJobs(const JobFilter& filter) override;
  absl::StatusOr<std::vector<JobEventRecord>> ListEvents(const JobId& job_id,
                                                         std::int64_t from_sequence,
                                                         int limit) override;
  absl::StatusOr<std::optional<std::string>> FindPreflight(const std::string& key) override;
  absl::StatusOr<std::optional<std::string>> FindFileDigest(const FileIdentity& identity) override;
  absl::StatusOr<std::vector<FileIdentity>> FindFilesByDigest(const std::string& digest) override;
  absl::StatusOr<BaseModelRecord> GetBaseModel(const std::string& name) override;
  absl::StatusOr<std::vector<BaseModelRecord>> ListBaseModels(const std::string& after,
                                                              int limit) override;
  absl::StatusOr<DerivativeRecord> GetDerivative(const DerivativeId& derivative_id) override;
  absl::StatusOr<std::vector<DerivativeRecord>> ListDerivatives(
      const DerivativeFilter& filter) override;
  absl::StatusOr<bool> IsReferenced(const std::string& digest) override;

 private:
  absl::Status Check(const StoreWrite& write) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  std::int64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  std::int64_t last_effect_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<JobId, JobRecord> jobs_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, JobId> requests_ ABSL_GUARDED_BY(mutex_);
  std::map<JobId, std::vector<JobEventRecord>> events_ ABSL_GUARDED_BY(mutex_);
  std::map<std::int64_t, Effect> effects_ ABSL_GUARDED_BY(mutex_);
  std::map<WorkerId, WorkerRecord> workers_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, TeamUseRecord> team_use_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> preflights_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, FileDigest> file_digests_ ABSL_GUARDED_BY(mutex_);  // by path
  std::map<std::string, BaseModelRecord> base_models_ ABSL_GUARDED_BY(mutex_);
  std::vector<DerivativeRecord> derivatives_ ABSL_GUARDED_BY(mutex_);  // oldest first
  std::map<std::string, std::set<std::string>> references_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace offshoot
