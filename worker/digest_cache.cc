#include "worker/digest_cache.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/descriptor.h"

namespace offshoot::worker {
namespace {

constexpr absl::Duration kSettled = absl::Seconds(1);

struct FileState {
  std::string key;
  absl::Time modified;
};

std::optional<FileState> ReadState(const std::string& file) {
  struct stat info;
  if (stat(file.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
  return FileState{absl::StrCat(info.st_dev, ":", info.st_ino, ":", info.st_size, ":",
                                info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec),
                   absl::TimeFromTimespec(info.st_mtim)};
}

}  // namespace

absl::StatusOr<std::string> DigestOfFile(const std::string& file, const CancelToken& token) {
  const Descriptor in(open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!in.valid()) return ErrnoStatus(errno, absl::StrCat("cannot open ", file));
  constexpr std::size_t kPieceBytes = 1 << 20;
  std::string buffer(kPieceBytes, '\0');
  Sha256 sha;
  while (true) {
    if (token.cancelled()) return absl::CancelledError("given up by request");
    const ssize_t got = read(in.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("cannot read ", file));
    if (got == 0) return sha.Finish();
    sha.Update(absl::string_view(buffer.data(), static_cast<std::size_t>(got)));
  }
}

DigestCache::DigestCache(std::string path) : path_(std::move(path)) {
  const absl::StatusOr<std::string> text = ReadFile(path_);
  if (!text.ok()) return;
  std::vector<absl::string_view> lines = absl::StrSplit(*text, '\n', absl::SkipEmpty());
  const bool too_many = lines.size() > kMaxEntries;
  if (too_many) lines.erase(lines.begin(), lines.end() - kMaxEntries / 2);
  absl::MutexLock lock(&mutex_);
  std::string kept;
  for (const absl::string_view line : lines) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (!IsDigest(parts.first) || parts.second.empty()) continue;
    digests_[std::string(parts.second)] = std::string(parts.first);
    absl::StrAppend(&kept, line, "\n");
  }
  // Losing this file costs time, nothing else.
  if (too_many) WriteFileAtomically(path_, kept).IgnoreError();
}

absl::StatusOr<std::string> DigestCache::Digest(const std::string& file, const CancelToken& token) {
  const std::optional<FileState> before = ReadState(file);
  if (before.has_value()) {
    absl::MutexLock lock(&mutex_);
    const auto found = digests_.find(before->key);
    if (found != digests_.end()) return found->second;
    ++hashed_;
  }
  const absl::Time begin = absl::Now();
  ASSIGN_OR_RETURN(std::string digest, DigestOfFile(file, token));
  const std::optional<FileState> after = ReadState(file);
  if (before.has_value() && after.has_value() && before->key == after->key &&
      after->modified + kSettled < begin) {
    Store(after->key, digest);
  }
  return digest;
}

void DigestCache::Remember(const std::string& file, const std::string& digest) {
  if (const std::optional<FileState> state = ReadState(file)) Store(state->key, digest);
}

void DigestCache::Store(const std::string& key, const std::string& digest) {
  absl::MutexLock lock(&mutex_);
  if (digests_.size() >= kMaxEntries) digests_.clear();
  if (!digests_.emplace(key, digest).second) return;
  const Descriptor file(open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!file.valid()) return;
  const std::string line = absl::StrCat(digest, " ", key, "\n");
  [[maybe_unused]] const ssize_t wrote = write(file.get(), line.data(), line.size());
}

}  // namespace offshoot::worker
