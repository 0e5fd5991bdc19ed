// Files: whole-file reads, atomic durable writes, directory trees. Thread-safe; no state.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot {

// Statuses name the path and, for a full disk (RESOURCE_EXHAUSTED), say so.
absl::Status ErrnoStatus(int error_number, absl::string_view what);

absl::StatusOr<std::string> ReadFile(const std::string& path);
// Writes a temporary file beside it, syncs it, renames it over path, syncs the directory.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view data);
absl::Status SyncFile(const std::string& path);
absl::Status SyncDirectory(const std::string& path);
absl::Status MakeDirectories(const std::string& path);
absl::Status RemoveTree(const std::string& path);  // absent is fine
bool PathExists(const std::string& path);
bool IsDirectory(const std::string& path);
// Regular files below root, sorted, as paths relative to it. Follows symbolic links to files
// (a Hugging Face snapshot is made of them).
absl::StatusOr<std::vector<std::string>> ListFilesBelow(const std::string& root);
std::string JoinPath(absl::string_view a, absl::string_view b);
// True if path, once symbolic links and ".." are resolved, lies in root.
bool PathIsInside(const std::string& path, const std::string& root);
// A relative path that stays below its root: no leading '/', no "..", no NUL, not empty.
bool IsSafeRelativePath(absl::string_view path);

// flock on a file: held until destroyed. FAILED_PRECONDITION naming the path when another holds it.
class FileLock {
 public:
  static absl::StatusOr<FileLock> Acquire(const std::string& path);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}
  int descriptor_ = -1;
};

}  // namespace offshoot
