// Files known by their SHA-256, in a directory: artifacts/ab/<64 hex digits>. A file appears there
// only whole, synced and with the right digest; an unfinished upload is a .part file beside it,
// which a later upload may go on from. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/digest.h"

namespace offshoot {

class ArtifactDirectory;

// One upload in progress. Of two uploads of the same digest the later one wins; the earlier is
// answered ABORTED. Used by one thread at a time; must not outlive its directory.
class ArtifactUpload {
 public:
  ~ArtifactUpload();
  ArtifactUpload(const ArtifactUpload&) = delete;
  ArtifactUpload& operator=(const ArtifactUpload&) = delete;

  // RESOURCE_EXHAUSTED: the disk is full. OUT_OF_RANGE: more bytes than announced.
  absl::Status Append(absl::string_view data);
  // Checks size and digest, syncs, and makes the artifact appear. DATA_LOSS: the bytes are not
  // those of the digest (the part is removed).
  absl::Status Finish();
  bool already_there() const { return already_there_; }

 private:
  friend class ArtifactDirectory;
  ArtifactUpload(ArtifactDirectory& directory, std::string digest, std::int64_t size_bytes)
      : directory_(directory), digest_(std::move(digest)), size_bytes_(size_bytes) {}

  ArtifactDirectory& directory_;
  std::string digest_;
  std::int64_t size_bytes_ = 0;
  std::int64_t offset_ = 0;
  std::uint64_t generation_ = 0;
  int descriptor_ = -1;
  bool already_there_ = false;
  std::unique_ptr<Sha256> hash_;  // of an upload from offset 0; else the part is read again
};

class ArtifactReader {
 public:
  // Any file; NOT_FOUND naming it.
  static absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(const std::string& path);
  ~ArtifactReader();
  std::int64_t size_bytes() const { return size_bytes_; }
  absl::StatusOr<std::string> Read(std::int64_t offset, std::size_t max_bytes) const;

 private:
  ArtifactReader(int descriptor, std::int64_t size_bytes)
      : descriptor_(descriptor), size_bytes_(size_bytes) {}
  int descriptor_;
  std::int64_t size_bytes_;
};

class ArtifactDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<ArtifactDirectory>> Open(const std::string& root);

  // Where the bytes of a digest lie, or would lie.
  std::string PathOf(absl::string_view digest) const;
  // Size in bytes of an artifact that is there. Touches it, so that the collector spares it for a
  // while: who asks is about to refer to it.
  std::optional<std::int64_t> Find(const std::string& digest) const;
  bool HasAll(const std::vector<FileEntry>& files, std::string* missing) const;

  // Bytes of an unfinished upload that are there to go on from.
  std::int64_t PartSize(const std::string& digest) const;
  // INVALID_ARGUMENT: no digest or a senseless size. FAILED_PRECONDITION: offset is beyond the
  // part. RESOURCE_EXHAUSTED: it would not fit on the disk.
  absl::StatusOr<std::unique_ptr<ArtifactUpload>> BeginUpload(const std::string& digest,
                                                              std::int64_t size_bytes,
                                                              std::int64_t offset);
  // NOT_FOUND naming the digest.
  absl::StatusOr<std::unique_ptr<ArtifactReader>> OpenArtifact(const std::string& digest) const;

  // Removes an artifact that was not touched since `older_than`; absent is fine.
  void RemoveIfOlder(const std::string& digest, absl::Time older_than);
  // Removes each artifact and part not touched since `older_than` of which is_needed says no.
  void Sweep(absl::Time older_than, absl::FunctionRef<bool(const std::string& digest)> is_needed);

 private:
  friend class ArtifactUpload;
  explicit ArtifactDirectory(std::string root) : root_(std::move(root)) {}
  bool Owns(const ArtifactUpload& upload) const;

  std::string root_;
  mutable absl::Mutex mutex_;
  std::uint64_t next_generation_ ABSL_GUARDED_BY(mutex_) = 1;
  // Which upload of a digest is the newest.
  absl::flat_hash_map<std::string, std::uint64_t> uploads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace offshoot
