// Digests a file while it is still being written: a thread follows the writer through the page
// cache, so that hashing costs no time of the transfer and holds no copy of the data.
// Used by one writer; Finish may be called once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace offshoot {

struct BlobDigests {
  std::string sha256;  // "sha256:..."
  std::string git;     // git's name of the bytes: 40 hex digits
};

class BlobHash {
 public:
  // descriptor stays open until Finish or the destructor. size_bytes is what the file will have.
  BlobHash(int descriptor, std::int64_t size_bytes);
  ~BlobHash();
  BlobHash(const BlobHash&) = delete;
  BlobHash& operator=(const BlobHash&) = delete;

  // Everything before this offset is written.
  void Advance(std::int64_t written_bytes);
  // Waits until all is digested. DATA_LOSS: the file could not be read, or is shorter.
  absl::StatusOr<BlobDigests> Finish();

 private:
  struct State;
  void Run();

  const int descriptor_;
  const std::int64_t size_bytes_;
  const std::unique_ptr<State> state_;
  absl::Mutex mutex_;
  std::int64_t written_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Of a file that is there.
absl::StatusOr<BlobDigests> DigestBlob(const std::string& path);

}  // namespace offshoot
