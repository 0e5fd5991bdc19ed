// Files that are whole or absent: written beside their place, synced, renamed.
//
// Errors: Error(kDiskFull) when the disk or quota is full, else Error(kInternal); both name the
// path. A DurableFile belongs to one thread; the free functions are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace offshoot::trainer {

class DurableFile {
 public:
  // Opens `path`.tmp, replacing one that a killed process left.
  explicit DurableFile(std::string path);
  // Removes the temporary file if Commit was not reached.
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;

  void WriteAt(std::uint64_t offset, const void* data, std::size_t size_bytes);
  // Syncs, renames over the path and syncs its directory.
  void Commit();

 private:
  std::string path_;
  std::string temporary_path_;
  int descriptor_ = -1;
};

void WriteFileDurably(const std::string& path, std::string_view text);
// Copies the bytes (a symbolic link's target, not the link).
void CopyFileDurably(const std::string& from, const std::string& to);
void SyncDirectory(const std::string& path);
// Renames a directory into place and syncs the parent. `to` must be absent or an empty directory.
void RenameDirectory(const std::string& from, const std::string& to);

}  // namespace offshoot::trainer
