// The store in one SQLite file (WAL, synchronous=FULL): one connection writes, a few read.
// Thread-safe. The schema has a version; an older file is migrated when it is opened, a newer one
// is refused.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/sqlite.h"
#include "coordinator/store.h"

namespace offshoot {

class SqliteStore : public Store {
 public:
  static absl::StatusOr<std::unique_ptr<SqliteStore>> Open(const std::string& path);

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
  // A connection with the statements it has prepared.
  struct Connection {
    SqliteConnection connection;
    std::map<std::string, SqliteStatement, std::less<>> statements;
    absl::StatusOr<SqliteStatement*> Statement(absl::string_view sql);
  };
  using Bind = absl::FunctionRef<void(SqliteStatement&)>;
  using OnRow = absl::FunctionRef<absl::Status(const SqliteStatement&)>;

  SqliteStore() = default;
  absl::Status Migrate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status Write(absl::string_view sql, Bind bind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status WriteAll(const StoreWrite& write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status WriteJobs(const StoreWrite& write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  absl::Status WriteModels(const StoreWrite& write) ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  // Runs a query on a free reading connection; on_row is called for each row.
  absl::Status Read(absl::string_view sql, Bind bind, OnRow on_row);
  absl::StatusOr<std::vector<JobRecord>> ReadJobs(absl::string_view where, Bind bind);
  absl::StatusOr<bool> IsRequest(const std::string& request_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(writer_mutex_);
  void Remember(const StoreWrite& write);

  std::string path_;
  absl::Mutex writer_mutex_;
  Connection writer_ ABSL_GUARDED_BY(writer_mutex_);
  std::int64_t version_ ABSL_GUARDED_BY(writer_mutex_) = 0;
  // What is asked for at every submit. Nobody else writes to the store.
  absl::Mutex known_mutex_;
  absl::flat_hash_map<std::string, FileDigest> known_files_ ABSL_GUARDED_BY(known_mutex_);
  absl::flat_hash_map<std::string, std::string> known_preflights_ ABSL_GUARDED_BY(known_mutex_);
  absl::Mutex readers_mutex_;
  std::vector<std::unique_ptr<Connection>> free_readers_ ABSL_GUARDED_BY(readers_mutex_);
};

}  // namespace offshoot
