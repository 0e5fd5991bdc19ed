// Models of a hub, as the coordinator needs them: which commit a name stands for, and the digest of
// each of its files. Large files are described by the hub itself; small ones, whose SHA-256 it does
// not say, are fetched into the coordinator's Hugging Face cache. The large ones go straight from
// the hub to the workers. Thread-safe; Describe blocks.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/digest.h"
#include "hub/environment.h"

namespace offshoot {

struct HubModel {
  std::string commit;
  std::vector<FileEntry> files;
};

class HubModels {
 public:
  explicit HubModels(HubEnvironment environment) : environment_(std::move(environment)) {}

  // INVALID_ARGUMENT: no such model. FAILED_PRECONDITION: gated, unreachable, offline, or weights
  // that are never read. Each a sentence with the remedy.
  absl::StatusOr<HubModel> Describe(const HubReference& reference);

 private:
  static constexpr std::size_t kMaxRemembered = 256;

  const HubEnvironment environment_;
  absl::Mutex mutex_;
  // By repository@commit: what a commit holds never changes.
  std::map<std::string, HubModel> described_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace offshoot
