#include "trainer/export/result_directory.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "trainer/error.h"
#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/durable_file.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void Fail(const std::string& path, const std::string& what,
                       const std::error_code& error) {
  if (error == std::errc::no_space_on_device) {
    throw Error(Reason::kDiskFull, path + ": the disk is full; free some space and go on.");
  }
  throw Error(Reason::kInternal, path + ": cannot " + what + ": " + error.message() + ".");
}

// Everything below a directory reaches the disk: files first, then the directories that name them.
void SyncTree(const std::string& directory) {
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.is_directory()) {
      SyncTree(entry.path().string());
      continue;
    }
    const int descriptor = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    const bool synced = descriptor >= 0 && fsync(descriptor) == 0;
    const std::error_code error(errno, std::generic_category());
    if (descriptor >= 0) close(descriptor);
    if (!synced) Fail(entry.path().string(), "be synced", error);
  }
  SyncDirectory(directory);
}

}  // namespace

ResultDirectory::ResultDirectory(std::string path) : path_(std::move(path)) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  temporary_path_ = path_ + ".tmp";
  std::error_code error;
  fs::remove_all(temporary_path_, error);
  if (error) Fail(temporary_path_, "be removed", error);
  fs::create_directories(temporary_path_, error);
  if (error) Fail(temporary_path_, "be made", error);
}

ResultDirectory::~ResultDirectory() {
  if (committed_) return;
  std::error_code ignored;
  fs::remove_all(temporary_path_, ignored);
}

void ResultDirectory::Commit() {
  SyncTree(temporary_path_);
  std::error_code error;
  const bool replaces = fs::exists(path_, error);
  const auto rename_with = [&](unsigned flags) {
    return renameat2(AT_FDCWD, temporary_path_.c_str(), AT_FDCWD, path_.c_str(), flags) == 0;
  };
  bool placed = rename_with(replaces ? RENAME_EXCHANGE : 0);
  if (!placed && replaces && (errno == EINVAL || errno == ENOSYS)) {
    // A file system without the exchange: the older result goes first.
    fs::remove_all(path_, error);
    placed = rename_with(0);
  }
  if (!placed) Fail(path_, "be put in place", std::error_code(errno, std::generic_category()));
  const std::string parent = fs::path(path_).parent_path().string();
  SyncDirectory(parent.empty() ? "." : parent);
  committed_ = true;
  fs::remove_all(temporary_path_, error);  // after an exchange: the older result
}

std::vector<ResultFile> ListResultFiles(const std::string& directory) {
  std::vector<ResultFile> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    files.push_back({fs::relative(entry.path(), directory).generic_string(),
                     Sha256OfFile(entry.path().string()),
                     static_cast<std::int64_t>(entry.file_size())});
  }
  std::sort(files.begin(), files.end(),
            [](const ResultFile& a, const ResultFile& b) { return a.path < b.path; });
  return files;
}

}  // namespace offshoot::trainer
