// Digests of files on disk, computed once: a base model of gigabytes is not hashed for every job.
//
// A digest is remembered for (device, inode, size, modification time in ns) in a small file that
// survives restarts. A file modified so recently that a further change might keep its modification
// time is hashed each time. Thread-safe; two threads may hash the same file at once.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "worker/cancel_token.h"

namespace offshoot::worker {

// The digest of a file, given up when the token is cancelled.
absl::StatusOr<std::string> DigestOfFile(const std::string& file, const CancelToken& token);

class DigestCache {
 public:
  static constexpr std::size_t kMaxEntries = 8192;

  // An unreadable or damaged file is an empty cache.
  explicit DigestCache(std::string path);

  // CANCELLED: the token.
  absl::StatusOr<std::string> Digest(const std::string& file, const CancelToken& token);
  // For a file that was checked just now and that nobody else writes.
  void Remember(const std::string& file, const std::string& digest);
  // How many files were hashed: for tests.
  std::size_t hashed() const {
    absl::MutexLock lock(&mutex_);
    return hashed_;
  }

 private:
  void Store(const std::string& key, const std::string& digest);

  const std::string path_;
  mutable absl::Mutex mutex_;
  std::unordered_map<std::string, std::string> digests_ ABSL_GUARDED_BY(mutex_);
  std::size_t hashed_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace offshoot::worker
