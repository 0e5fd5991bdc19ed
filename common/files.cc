#include "common/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/ids.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

namespace fs = std::filesystem;

// Closes on leaving the scope; Close() reports the error that only close may find.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  int get() const { return value_; }
  int Close() { return close(std::exchange(value_, -1)); }

 private:
  int value_;
};

absl::Status WriteAll(int descriptor, absl::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t wrote = write(descriptor, data.data(), data.size());
    if (wrote < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, absl::StrCat("cannot write ", path));
    }
    data.remove_prefix(static_cast<std::size_t>(wrote));
  }
  return absl::OkStatus();
}

std::string ParentOf(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

absl::Status SyncPath(const std::string& path, int flags) {
  Descriptor descriptor(open(path.c_str(), flags | O_CLOEXEC));
  if (descriptor.get() < 0) return ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  if (fsync(descriptor.get()) != 0) return ErrnoStatus(errno, absl::StrCat("cannot sync ", path));
  return absl::OkStatus();
}

absl::Status WriteTemporary(const std::string& path, absl::string_view data) {
  Descriptor descriptor(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (descriptor.get() < 0) return ErrnoStatus(errno, absl::StrCat("cannot create ", path));
  RETURN_IF_ERROR(WriteAll(descriptor.get(), data, path));
  if (fsync(descriptor.get()) != 0) return ErrnoStatus(errno, absl::StrCat("cannot sync ", path));
  if (descriptor.Close() != 0) return ErrnoStatus(errno, absl::StrCat("cannot close ", path));
  return absl::OkStatus();
}

}  // namespace

absl::Status ErrnoStatus(int error_number, absl::string_view what) {
  if (error_number == ENOSPC || error_number == EDQUOT) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": the disk is full; free some space or name another directory"));
  }
  const std::string text = absl::StrCat(what, ": ", std::generic_category().message(error_number));
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(text);
    case EEXIST:
      return absl::AlreadyExistsError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(text);
    case EINVAL:
    case ENAMETOOLONG:
    case ELOOP:
    case EISDIR:
      return absl::InvalidArgumentError(text);
    case EAGAIN:
    case EINTR:
      return absl::UnavailableError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  Descriptor descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() < 0) return ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  struct stat info;
  if (fstat(descriptor.get(), &info) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot read ", path));
  }
  std::string data;
  if (S_ISREG(info.st_mode)) data.reserve(static_cast<std::size_t>(info.st_size));
  char buffer[64 << 10];
  while (true) {
    const ssize_t got = read(descriptor.get(), buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("cannot read ", path));
    if (got == 0) return data;
    data.append(buffer, static_cast<std::size_t>(got));
  }
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view data) {
  const std::string temporary = absl::StrCat(path, MakeRandomId(".tmp-"));
  absl::Status status = WriteTemporary(temporary, data);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus(errno, absl::StrCat("cannot rename ", temporary, " to ", path));
  }
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  return SyncDirectory(ParentOf(path));
}

absl::Status SyncFile(const std::string& path) { return SyncPath(path, O_RDONLY); }

absl::Status SyncDirectory(const std::string& path) {
  return SyncPath(path, O_RDONLY | O_DIRECTORY);
}

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot make the directory ", path));
  if (!IsDirectory(path)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is there but is not a directory"));
  }
  return absl::OkStatus();
}

absl::Status RemoveTree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot remove ", path));
  return absl::OkStatus();
}

bool PathExists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

bool IsDirectory(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

absl::StatusOr<std::vector<std::string>> ListFilesBelow(const std::string& root) {
  std::error_code error;
  fs::recursive_directory_iterator entry(root, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot list ", root));
  std::vector<std::string> files;
  const fs::recursive_directory_iterator end;
  while (entry != end) {
    std::error_code missing;
    const fs::file_status status = entry->status(missing);
    if (status.type() == fs::file_type::not_found) {
      return absl::NotFoundError(absl::StrCat(
          entry->path().string(), " is a link to a file that is not there; fetch it again"));
    }
    if (status.type() == fs::file_type::regular) {
      files.push_back(entry->path().lexically_relative(root).generic_string());
    }
    entry.increment(error);
    if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot list ", root));
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::string JoinPath(absl::string_view a, absl::string_view b) {
  if (a.empty()) return std::string(b);
  if (b.empty()) return std::string(a);
  while (!b.empty() && b.front() == '/') b.remove_prefix(1);
  return absl::StrCat(a, a.back() == '/' ? "" : "/", b);
}

bool PathIsInside(const std::string& path, const std::string& root) {
  std::error_code error;
  const fs::path real_path = fs::weakly_canonical(fs::absolute(path, error), error);
  if (error) return false;
  const fs::path real_root = fs::weakly_canonical(fs::absolute(root, error), error);
  if (error) return false;
  const fs::path relative = real_path.lexically_relative(real_root);
  return !relative.empty() && *relative.begin() != "..";
}

bool IsSafeRelativePath(absl::string_view path) {
  if (path.empty() || path.front() == '/' || path.find('\0') != absl::string_view::npos) {
    return false;
  }
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == "." || part == "..") return false;
  }
  return true;
}

absl::StatusOr<FileLock> FileLock::Acquire(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot open the lock ", path));
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    const int error_number = errno;
    close(descriptor);
    if (error_number == EWOULDBLOCK) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, " is locked by another process; stop it or use another directory"));
    }
    return ErrnoStatus(error_number, absl::StrCat("cannot lock ", path));
  }
  return FileLock(descriptor);
}

FileLock::FileLock(FileLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) close(descriptor_);
    descriptor_ = std::exchange(other.descriptor_, -1);
  }
  return *this;
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace offshoot
