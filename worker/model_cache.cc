#include "worker/model_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/ids.h"
#include "common/status_macros.h"
#include "worker/inventory.h"

namespace offshoot::worker {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kHexDigits = 64;
constexpr std::size_t kSetNameDigits = 16;
constexpr std::size_t kMaxFilesOfInput = 10'000;
constexpr absl::Duration kPartialLife = absl::Hours(24);
constexpr std::int64_t kDiskReserveBytes = 64 << 20;  // left free for logs and checkpoints

std::string NameOf(const v1::File& file) {
  absl::string_view digest = file.digest();
  absl::ConsumePrefix(&digest, "sha256:");
  return std::string(digest);
}

absl::Status CheckFiles(const std::vector<v1::File>& files) {
  if (files.empty() || files.size() > kMaxFilesOfInput) {
    return absl::InvalidArgumentError(absl::StrCat("an input of ", files.size(),
                                                   " files was asked for; 1 to ", kMaxFilesOfInput,
                                                   " are possible"));
  }
  for (const v1::File& file : files) {
    const bool plain = files.size() == 1 && file.path().empty();
    if (!plain && !IsSafeRelativePath(file.path())) {
      return absl::InvalidArgumentError(
          absl::StrCat("the file path \"", file.path(), "\" of an input does not stay below it"));
    }
    if (!IsDigest(file.digest()) || file.size_bytes() < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the input file \"", file.path(), "\" has no valid digest or size"));
    }
  }
  return absl::OkStatus();
}

// True when the shared directory is what is wanted, no more and no less: then it is used under its
// own name, which is the one that people know.
bool IsWholeDirectory(const std::string& shared_path,
                      const std::map<std::string, std::string>& links) {
  if (shared_path.empty()) return false;
  const absl::StatusOr<std::vector<std::string>> there = ListFilesBelow(shared_path);
  if (!there.ok() || there->size() != links.size()) return false;
  return std::all_of(there->begin(), there->end(), [&](const std::string& path) {
    const auto found = links.find(path);
    return found != links.end() && found->second == JoinPath(shared_path, path);
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelCache>> ModelCache::Open(const std::string& root,
                                                             std::int64_t max_bytes,
                                                             DigestCache& digests, Fetch fetch) {
  RETURN_IF_ERROR(MakeDirectories(JoinPath(root, "files")));
  // Sets are cheap and made again when wanted; those of an earlier process may point nowhere.
  RETURN_IF_ERROR(RemoveTree(JoinPath(root, "sets")));
  RETURN_IF_ERROR(MakeDirectories(JoinPath(root, "sets")));
  std::unique_ptr<ModelCache> cache(new ModelCache(root, max_bytes, digests, std::move(fetch)));
  RETURN_IF_ERROR(cache->Scan());
  return cache;
}

std::string ModelCache::FilePath(const std::string& name) const {
  return absl::StrCat(root_, "/files/", name);
}

absl::Status ModelCache::Scan() {
  absl::MutexLock lock(&mutex_);
  std::error_code error;
  for (const fs::directory_entry& file : fs::directory_iterator(JoinPath(root_, "files"), error)) {
    const std::string name = file.path().filename().string();
    struct stat info;
    if (stat(file.path().c_str(), &info) != 0) continue;
    if (name.size() != kHexDigits) {
      // A download that nobody went on with.
      if (absl::Now() - absl::TimeFromTimespec(info.st_mtim) > kPartialLife) {
        unlink(file.path().c_str());
      }
      continue;
    }
    entries_[name] = Entry{info.st_size, absl::TimeFromTimespec(info.st_atim), 0};
    size_bytes_ += info.st_size;
  }
  if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot list ", root_));
  return absl::OkStatus();
}

std::int64_t ModelCache::size_bytes() const {
  absl::MutexLock lock(&mutex_);
  return size_bytes_;
}

bool ModelCache::SharedFileMatches(const std::string& path, const v1::File& file,
                                   const CancelToken& token) {
  std::error_code error;
  const std::uintmax_t size = fs::file_size(path, error);
  if (error || size != static_cast<std::uintmax_t>(file.size_bytes())) return false;
  const absl::StatusOr<std::string> digest = digests_.Digest(path, token);
  return digest.ok() && *digest == file.digest();
}

absl::StatusOr<ModelCache::Prepared> ModelCache::Prepare(const std::vector<v1::File>& files,
                                                         const std::string& shared_path,
                                                         CancelToken& token) {
  RETURN_IF_ERROR(CheckFiles(files));
  const bool plain = files.size() == 1 && files[0].path().empty();
  std::vector<std::string> pinned;
  std::map<std::string, std::string> links;  // relative path -> target
  absl::Status failed;
  for (const v1::File& file : files) {
    const std::string shared = shared_path.empty() ? "" : JoinPath(shared_path, file.path());
    if (!shared.empty() && SharedFileMatches(shared, file, token)) {
      links[file.path()] = shared;
      continue;
    }
    absl::StatusOr<std::string> path = PrepareFile(file, token);
    if (!path.ok()) {
      failed = path.status();
      break;
    }
    pinned.push_back(NameOf(file));
    links[file.path()] = *std::move(path);
  }
  Prepared prepared;
  prepared.pin = std::make_unique<Pin>(*this, std::move(pinned));
  RETURN_IF_ERROR(failed);
  if (plain) {
    prepared.path = links.begin()->second;
  } else if (IsWholeDirectory(shared_path, links)) {
    prepared.path = shared_path;
  } else {
    ASSIGN_OR_RETURN(prepared.path, MakeSet(links));
  }
  return prepared;
}

absl::StatusOr<std::string> ModelCache::PrepareFile(const v1::File& file, CancelToken& token) {
  const std::string name = NameOf(file);
  const std::string path = FilePath(name);
  {
    // Another attempt may be fetching it: its end, or the token's, wakes this wait.
    const CancelToken::Scope scope(token, [this] { absl::MutexLock wake(&mutex_); });
    absl::MutexLock lock(&mutex_);
    const auto free = [this, &name, &token] {
      mutex_.AssertReaderHeld();
      return fetching_.count(name) == 0 || token.cancelled();
    };
    mutex_.Await(absl::Condition(&free));
    if (token.cancelled()) return absl::CancelledError("given up by request");
    fetching_[name] = 1;
  }
  absl::Status status;
  const absl::StatusOr<std::string> digest =
      PathExists(path) ? digests_.Digest(path, token) : absl::NotFoundError("");
  if (!digest.ok() || *digest != file.digest()) status = FetchFile(name, file, token);
  absl::MutexLock lock(&mutex_);
  fetching_.erase(name);
  RETURN_IF_ERROR(status);
  Entry& entry = entries_[name];
  entry.last_used = absl::Now();
  ++entry.pins;
  const timespec times[2] = {{0, UTIME_NOW}, {0, UTIME_OMIT}};
  utimensat(AT_FDCWD, path.c_str(), times, 0);
  return path;
}

absl::Status ModelCache::FetchFile(const std::string& name, const v1::File& file,
                                   CancelToken& token) {
  const std::string path = FilePath(name);
  {
    absl::MutexLock lock(&mutex_);
    // What is there under this name is damaged.
    if (const auto found = entries_.find(name); found != entries_.end()) {
      size_bytes_ -= found->second.size_bytes;
      found->second.size_bytes = 0;
    }
    unlink(path.c_str());
    RETURN_IF_ERROR(MakeRoom(file.size_bytes()));
    size_bytes_ += file.size_bytes();
    Entry& entry = entries_[name];
    entry.size_bytes = file.size_bytes();
    ++entry.pins;  // while it comes
  }
  const absl::Status status = fetch_(file, path, token);
  if (status.ok()) digests_.Remember(path, file.digest());
  absl::MutexLock lock(&mutex_);
  Entry& entry = entries_[name];
  --entry.pins;
  if (!status.ok()) {
    size_bytes_ -= entry.size_bytes;
    entry.size_bytes = 0;
    if (entry.pins == 0) entries_.erase(name);
  }
  return status;
}

absl::Status ModelCache::MakeRoom(std::int64_t bytes) {
  const auto lacks_room = [&] {
    mutex_.AssertReaderHeld();
    const std::int64_t free = FreeDiskBytes(root_);
    return size_bytes_ + bytes > max_bytes_ || (free >= 0 && free < bytes + kDiskReserveBytes);
  };
  while (lacks_room()) {
    auto oldest = entries_.end();
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->second.pins > 0 || fetching_.count(entry->first) > 0) continue;
      if (oldest == entries_.end() || entry->second.last_used < oldest->second.last_used) {
        oldest = entry;
      }
    }
    if (oldest == entries_.end()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "no room for ", bytes, " bytes in the worker's cache ", root_, ": it may hold ",
          max_bytes_, " bytes, ", size_bytes_, " are in use, and ", FreeDiskBytes(root_),
          " bytes of the disk are free; free some space or raise cache_max_bytes"));
    }
    unlink(FilePath(oldest->first).c_str());
    size_bytes_ -= oldest->second.size_bytes;
    entries_.erase(oldest);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ModelCache::MakeSet(const std::map<std::string, std::string>& links) {
  // Named by everything that is in it: the same set is the same directory, and one that was made
  // is never changed.
  std::string listing;
  for (const auto& [path, target] : links) absl::StrAppend(&listing, path, "\n", target, "\n");
  const std::string name = DigestOf(listing).substr(sizeof("sha256:") - 1, kSetNameDigits);
  const std::string set = absl::StrCat(root_, "/sets/", name);
  if (IsDirectory(set)) return set;
  const std::string temporary = absl::StrCat(set, MakeRandomId(".tmp-"));
  std::error_code error;
  for (const auto& [path, target] : links) {
    const fs::path link = fs::path(temporary) / path;
    RETURN_IF_ERROR(MakeDirectories(link.parent_path().string()));
    const fs::path absolute = fs::absolute(target, error);
    if (!error) fs::create_symlink(absolute, link, error);
    if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot link ", link.string()));
  }
  if (rename(temporary.c_str(), set.c_str()) != 0) {
    const int error_number = errno;
    RETURN_IF_ERROR(RemoveTree(temporary));
    if (!IsDirectory(set)) return ErrnoStatus(error_number, absl::StrCat("cannot make ", set));
  }
  return set;
}

void ModelCache::Adopt(const std::string& path, const v1::File& file) {
  if (!IsDigest(file.digest())) return;
  const std::string name = NameOf(file);
  absl::MutexLock lock(&mutex_);
  if (entries_.count(name) > 0 || fetching_.count(name) > 0) return;
  if (!MakeRoom(file.size_bytes()).ok()) return;
  if (link(path.c_str(), FilePath(name).c_str()) != 0) return;
  entries_[name] = Entry{file.size_bytes(), absl::Now(), 0};
  size_bytes_ += file.size_bytes();
}

void ModelCache::Unpin(const std::vector<std::string>& names) {
  absl::MutexLock lock(&mutex_);
  for (const std::string& name : names) {
    const auto found = entries_.find(name);
    if (found != entries_.end() && found->second.pins > 0) --found->second.pins;
  }
}

}  // namespace offshoot::worker
