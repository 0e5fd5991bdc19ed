// The files that assignments need, by digest: base models, data sets, checkpoints to go on from.
//
//   ROOT/files/<64 hex digits>      each checked against its name when it came
//   ROOT/sets/<16 hex digits>/...   a directory as the trainer wants to see it: links to files of
//                                   the cache or of the shared path
// A shared path that is visible and has the right digest is used as it is, and costs no space.
// Bounded: the least recently used files go first, never one that a Pin holds. Two attempts that
// need the same file fetch it once. Thread-safe; Prepare blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "offshoot/v1/cluster.pb.h"
#include "worker/cancel_token.h"
#include "worker/digest_cache.h"

namespace offshoot::worker {

class ModelCache {
 public:
  // Puts a checked file at destination, or says in one sentence why not.
  using Fetch = std::function<absl::Status(const v1::File& file, const std::string& destination,
                                           CancelToken& token)>;

  // Keeps what was prepared from being evicted while it lives. Must not outlive the cache.
  class Pin {
   public:
    Pin(ModelCache& cache, std::vector<std::string> names)
        : cache_(cache), names_(std::move(names)) {}
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    ~Pin() { cache_.Unpin(names_); }

   private:
    ModelCache& cache_;
    const std::vector<std::string> names_;
  };

  struct Prepared {
    std::string path;  // a file or a directory
    std::unique_ptr<Pin> pin;
  };

  // root is made when it is not there. digests must outlive the cache.
  static absl::StatusOr<std::unique_ptr<ModelCache>> Open(const std::string& root,
                                                          std::int64_t max_bytes,
                                                          DigestCache& digests, Fetch fetch);

  // One file with the path "" becomes a file, anything else a directory.
  // RESOURCE_EXHAUSTED: no room. Others: from Fetch.
  absl::StatusOr<Prepared> Prepare(const std::vector<v1::File>& files,
                                   const std::string& shared_path, CancelToken& token);

  // Takes in a file of known digest by a hard link (a checkpoint written here may be wanted here
  // again); does nothing when there is no room or no way.
  void Adopt(const std::string& path, const v1::File& file);

  std::int64_t size_bytes() const;

 private:
  struct Entry {
    std::int64_t size_bytes = 0;
    absl::Time last_used;
    int pins = 0;
  };

  ModelCache(std::string root, std::int64_t max_bytes, DigestCache& digests, Fetch fetch)
      : root_(std::move(root)),
        max_bytes_(max_bytes),
        digests_(digests),
        fetch_(std::move(fetch)) {}

  absl::Status Scan();
  std::string FilePath(const std::string& name) const;
  // The cached file's path; it is pinned once more in either case of success.
  absl::StatusOr<std::string> PrepareFile(const v1::File& file, CancelToken& token);
  absl::Status FetchFile(const std::string& name, const v1::File& file, CancelToken& token);
  absl::Status MakeRoom(std::int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::string> MakeSet(const std::map<std::string, std::string>& links);
  bool SharedFileMatches(const std::string& path, const v1::File& file, const CancelToken& token);
  void Unpin(const std::vector<std::string>& names);

  const std::string root_;
  const std::int64_t max_bytes_;
  DigestCache& digests_;
  const Fetch fetch_;

  mutable absl::Mutex mutex_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int> fetching_ ABSL_GUARDED_BY(mutex_);
  std::int64_t size_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace offshoot::worker
