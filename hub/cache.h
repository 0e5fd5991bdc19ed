// Hugging Face's cache of models on disk, in huggingface_hub's own layout, so that transformers and
// Offshoot share one copy:
//
//   ROOT/models--org--name/blobs/<etag>                          the bytes
//   ROOT/models--org--name/snapshots/<commit>/<path> -> ../../blobs/<etag>
//   ROOT/models--org--name/refs/<revision>                       the commit it stood for
//   ROOT/.locks/models--org--name/<etag>.lock                    held while a blob is fetched
// Functions of the file system; thread-safe, also between processes.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hub/environment.h"

namespace offshoot {

class HubCache {
 public:
  explicit HubCache(std::string root) : root_(std::move(root)) {}
  const std::string& root() const { return root_; }

  // The commit that is known for a revision here, or "".
  std::string FindCommit(const HubReference& reference) const;
  std::string SnapshotPath(const std::string& repository, const std::string& commit) const;
  std::string BlobPath(const std::string& repository, const std::string& etag) const;
  std::string LockPath(const std::string& repository, const std::string& etag) const;

  // Makes snapshots/<commit>/<path> point to the blob; replaces what is there.
  absl::Status Link(const std::string& repository, const std::string& commit,
                    const std::string& path, const std::string& etag) const;
  absl::Status RememberRevision(const HubReference& reference, const std::string& commit) const;

 private:
  std::string ModelPath(const std::string& repository) const;
  const std::string root_;
};

// What a snapshot lacks to be a model ("config.json", "model-00002-of-00002.safetensors"); "" when
// it is whole. A snapshot may hold a part only: tokenizers are often fetched alone.
std::string MissingOfModel(const std::string& snapshot);

// A lock on a file that others take too; given back when destroyed.
class WaitingFileLock {
 public:
  // CANCELLED when cancelled() says so while waiting.
  static absl::StatusOr<WaitingFileLock> Acquire(const std::string& path,
                                                 const std::function<bool()>& cancelled);
  WaitingFileLock(WaitingFileLock&& other) noexcept;
  WaitingFileLock& operator=(WaitingFileLock&&) = delete;
  ~WaitingFileLock();

 private:
  explicit WaitingFileLock(int descriptor) : descriptor_(descriptor) {}
  int descriptor_;
};

}  // namespace offshoot
