// The models that a coordinator holds, as repositories of a hub:
//
//   <registered name>          a base model
//   <its base_model_id>        the same, under the name that adapters call it by
//   <team>/<name>              what was pushed; each commit is a revision
//   <derivative id>            a derivative
//   <team>/<derivative name>   the newest derivative of that name; older ones are its revisions
//   <either>-merged            the merged model of a derivative, as a model of its own
//
// A revision is main, a commit (40 hex digits of the files' digest), or a derivative's id.
// Thread-safe; answers come from the store.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/digest.h"
#include "coordinator/artifacts.h"
#include "coordinator/inputs.h"
#include "coordinator/store.h"

namespace offshoot {

struct CatalogSnapshot {
  std::string repository;  // as it was asked for
  std::string commit;
  absl::Time created;
  std::vector<FileEntry> files;
  std::string team;     // of a derivative or a pushed model; empty: everybody's
  bool pushed = false;  // by the hub's protocol, so that it may be pushed again
};

class HubCatalog {
 public:
  // All outlive the catalog.
  HubCatalog(Store& store, const ArtifactDirectory& artifacts, const InputResolver& resolver)
      : store_(store), artifacts_(artifacts), resolver_(resolver) {}

  // NOT_FOUND: no such repository. OUT_OF_RANGE: it has no such revision.
  absl::StatusOr<CatalogSnapshot> Find(const std::string& repository, const std::string& revision);
  // Where the bytes of a file of a snapshot lie; empty: nowhere any more.
  std::string PathOf(const FileEntry& file) const;

 private:
  struct Version {
    DerivativeId derivative_id;
    std::string commit;
    std::string merged_commit;
  };

  absl::StatusOr<CatalogSnapshot> FindBase(const std::string& name, const std::string& revision);
  absl::StatusOr<CatalogSnapshot> FindDerivative(const std::string& name, bool merged,
                                                 const std::string& revision);
  absl::Status Refresh() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Store& store_;
  const ArtifactDirectory& artifacts_;
  const InputResolver& resolver_;
  absl::Mutex mutex_;
  // Derivatives never change: what was listed once is only added to. Oldest first.
  std::map<std::string, std::vector<Version>> versions_ ABSL_GUARDED_BY(mutex_);
  DerivativeId newest_ ABSL_GUARDED_BY(mutex_);
};

// The commit that stands for a set of files.
std::string CommitOf(const std::vector<FileEntry>& files);

}  // namespace offshoot
