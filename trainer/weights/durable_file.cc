#include "trainer/weights/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "trainer/error.h"
#include "trainer/weights/mapped_file.h"

namespace offshoot::trainer {
namespace {

[[noreturn]] void Fail(const std::string& path, const char* what, int error_number) {
  if (error_number == ENOSPC || error_number == EDQUOT) {
    throw Error(Reason::kDiskFull, path + ": the disk is full; free some space and go on.");
  }
  if (error_number == EFBIG) {
    throw Error(Reason::kDiskFull,
                path + ": the file-size limit is reached; raise it (ulimit -f) and go on.");
  }
  throw Error(Reason::kInternal,
              path + ": cannot " + what + ": " + std::strerror(error_number) + ".");
}

std::string ParentOf(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

DurableFile::DurableFile(std::string path)
    : path_(std::move(path)), temporary_path_(path_ + ".tmp") {
  descriptor_ = open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) Fail(temporary_path_, "be created", errno);
}

DurableFile::~DurableFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_path_.c_str());
}

void DurableFile::WriteAt(std::uint64_t offset, const void* data, std::size_t size_bytes) {
  constexpr std::size_t kPieceBytes = std::size_t{64} << 20;  // below Linux's 2 GiB limit per call
  const char* next = static_cast<const char*>(data);
  while (size_bytes > 0) {
    const ssize_t written =
        pwrite(descriptor_, next, std::min(size_bytes, kPieceBytes), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) Fail(path_, "be written", errno);
    next += written;
    offset += static_cast<std::uint64_t>(written);
    size_bytes -= static_cast<std::size_t>(written);
  }
}

void DurableFile::Commit() {
  if (fsync(descriptor_) != 0) Fail(path_, "be synced", errno);
  const int descriptor = std::exchange(descriptor_, -1);
  if (close(descriptor) != 0) Fail(path_, "be closed", errno);
  if (std::rename(temporary_path_.c_str(), path_.c_str()) != 0) Fail(path_, "be renamed", errno);
  SyncDirectory(ParentOf(path_));
}

void WriteFileDurably(const std::string& path, std::string_view text) {
  DurableFile file(path);
  file.WriteAt(0, text.data(), text.size());
  file.Commit();
}

void CopyFileDurably(const std::string& from, const std::string& to) {
  const auto source = MappedFile::Open(from);
  DurableFile file(to);
  file.WriteAt(0, source->data(), source->size_bytes());
  file.Commit();
}

void SyncDirectory(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) Fail(path, "be opened", errno);
  const int result = fsync(descriptor);
  const int error_number = errno;
  close(descriptor);
  if (result != 0) Fail(path, "be synced", error_number);
}

void RenameDirectory(const std::string& from, const std::string& to) {
  SyncDirectory(from);
  if (std::rename(from.c_str(), to.c_str()) != 0) Fail(to, "be renamed into place", errno);
  SyncDirectory(ParentOf(to));
}

}  // namespace offshoot::trainer
