// A store between the controller and a real one: it lets the audit see every write, and now and
// then fails one, takes long over one, or has the coordinator killed before, after or (on disk) in
// the middle of it. For one thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "coordinator/store.h"
#include "tests/sim/world.h"

namespace offshoot::sim {

class FaultyStore : public Store {
 public:
  // directory: of the SQLite file; empty: in memory.
  FaultyStore(World& world, std::string directory);

  // What a process killed now leaves is opened anew.
  void Reopen();

  absl::StatusOr<std::int64_t> Commit(const StoreWrite& write) override;
  absl::StatusOr<LoadedState> Load() override;
  absl::StatusOr<JobRecord> GetJob(const JobId& id) override { return store_->GetJob(id); }
  absl::StatusOr<std::optional<JobRecord>> FindRequest(const std::string& id) override {
    return store_->FindRequest(id);
  }
  absl::StatusOr<std::vector<JobRecord>> ListJobs(const JobFilter& filter) override {
    return store_->ListJobs(filter);
  }
  absl::StatusOr<std::vector<JobEventRecord>> ListEvents(const JobId& id, std::int64_t from,
                                                         int limit) override {
    return store_->ListEvents(id, from, limit);
  }
  absl::StatusOr<std::optional<std::string>> FindPreflight(const std::string& key) override {
    return store_->FindPreflight(key);
  }
  absl::StatusOr<std::optional<std::string>> FindFileDigest(const FileIdentity& file) override {
    return store_->FindFileDigest(file);
  }
  absl::StatusOr<std::vector<FileIdentity>> FindFilesByDigest(const std::string& digest) override {
    return store_->FindFilesByDigest(digest);
  }
  absl::StatusOr<BaseModelRecord> GetBaseModel(const std::string& name) override {
    return store_->GetBaseModel(name);
  }
  absl::StatusOr<std::vector<BaseModelRecord>> ListBaseModels(const std::string& after,
                                                              int limit) override {
    return store_->ListBaseModels(after, limit);
  }
  absl::StatusOr<DerivativeRecord> GetDerivative(const DerivativeId& id) override {
    return store_->GetDerivative(id);
  }
  absl::StatusOr<std::vector<DerivativeRecord>> ListDerivatives(
      const DerivativeFilter& filter) override {
    return store_->ListDerivatives(filter);
  }
  absl::StatusOr<bool> IsReferenced(const std::string& digest) override {
    return store_->IsReferenced(digest);
  }

 private:
  absl::StatusOr<std::int64_t> Make(const StoreWrite& write);
  absl::StatusOr<std::int64_t> Tear(const StoreWrite& write);
  std::string DatabasePath() const;
  void OpenCopy(std::uintmax_t log_bytes);

  World& world_;
  const std::string directory_;
  int generation_ = 0;  // of the SQLite file: a copy is taken at each kill
  std::unique_ptr<Store> store_;
};

}  // namespace offshoot::sim
