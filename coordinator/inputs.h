// From what a job file names to bytes: base model, data sets and initial adapter, each as files
// with digests. Looks only at registered models, stored artifacts and regular files under the
// allowed roots. Digests of files are remembered by (path, size, modification time, inode).
// Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/job_spec.h"
#include "coordinator/artifacts.h"
#include "coordinator/hub/hub_models.h"
#include "coordinator/records.h"
#include "coordinator/store.h"

namespace offshoot {

struct ResolvedInputs {
  JobInputs inputs;
  std::vector<FileDigest> learned;  // to be remembered
};

class InputResolver {
 public:
  // hub_cache: Hugging Face's cache of models, for org/name[@revision]; empty: none. hub: asked for
  // what is not whole there; null: nobody is. It outlives the resolver.
  InputResolver(Store& store, const ArtifactDirectory& artifacts,
                std::vector<std::string> allowed_roots, std::string hub_cache,
                HubModels* hub = nullptr)
      : store_(store),
        artifacts_(artifacts),
        allowed_roots_(std::move(allowed_roots)),
        hub_cache_(std::move(hub_cache)),
        hub_(hub),
        real_roots_(RealRoots()) {}

  // Asked of each job before its inputs are; set before the resolver is used.
  void set_check(std::function<absl::Status(const JobSpec&)> check) { check_ = std::move(check); }

  // Quick: reads no file's content. nullopt: some digest must be computed, call Resolve in a thread
  // that may block. INVALID_ARGUMENT: one sentence naming what is missing or not allowed.
  absl::StatusOr<std::optional<ResolvedInputs>> TryResolve(
      const std::shared_ptr<const JobSpec>& spec) const;
  absl::StatusOr<ResolvedInputs> Resolve(const JobSpec& spec) const;

  // A file under the allowed roots that has these bytes and has not changed since they were
  // digested: what a worker that does not see the path can be sent. nullopt: there is none.
  std::optional<std::string> FindKnownFile(const std::string& digest) const;

  // A directory or file under the allowed roots, for registering a base model.
  absl::StatusOr<std::vector<FileEntry>> DescribeModelPath(const std::string& path,
                                                           std::vector<FileDigest>* learned) const;

 private:
  struct Pass;  // one resolution under way
  // The digest of the spec and of what it names; remembered for specs that come often.
  struct KnownKey {
    std::shared_ptr<const JobSpec> spec;  // keeps its address its own
    std::vector<std::string> digests;
    std::string key;
  };
  std::string KeyOf(const JobSpec& spec, const std::shared_ptr<const JobSpec>& shared,
                    const std::vector<InputRecord>& inputs) const;
  std::vector<std::string> RealRoots() const;
  absl::Status CheckPath(absl::string_view what, const std::string& path) const;
  absl::Status AddPath(absl::string_view what, const std::string& path, InputRecord* input,
                       Pass* pass) const;
  absl::Status AddArtifact(absl::string_view what, const std::string& digest,
                           InputRecord* input) const;
  absl::StatusOr<std::string> DigestAt(const std::string& path, FileEntry* entry, Pass* pass) const;
  absl::Status AddHubModel(const std::string& reference, InputRecord* input, Pass* pass) const;
  absl::Status AddBaseModel(const std::string& reference, Pass* pass) const;
  absl::Status AddDataset(std::size_t index, const std::string& reference, Pass* pass) const;
  absl::Status AddInitAdapter(const std::string& reference, Pass* pass) const;
  absl::Status RunPass(const JobSpec& spec, const std::shared_ptr<const JobSpec>& shared,
                       Pass* pass) const;

  Store& store_;
  const ArtifactDirectory& artifacts_;
  const std::vector<std::string> allowed_roots_;
  const std::string hub_cache_;
  HubModels* const hub_;
  const std::vector<std::string> real_roots_;  // without symbolic links; the hub's cache too
  mutable absl::Mutex mutex_;
  mutable absl::flat_hash_map<const JobSpec*, KnownKey> known_keys_ ABSL_GUARDED_BY(mutex_);
  std::function<absl::Status(const JobSpec&)> check_;
};

}  // namespace offshoot
