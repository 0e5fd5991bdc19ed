#include "hub/cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/ids.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr absl::Duration kLockPoll = absl::Milliseconds(50);
constexpr std::uintmax_t kMaxIndexBytes = 64 << 20;
// Of huggingface_hub: all who share the cache may wait for a lock.
constexpr mode_t kLockMode = 0664;

}  // namespace

std::string HubCache::ModelPath(const std::string& repository) const {
  return absl::StrCat(root_, "/models--", absl::StrReplaceAll(repository, {{"/", "--"}}));
}

std::string HubCache::FindCommit(const HubReference& reference) const {
  if (IsCommit(reference.revision)) return reference.revision;
  const absl::StatusOr<std::string> text =
      ReadFile(absl::StrCat(ModelPath(reference.repository), "/refs/", reference.revision));
  if (!text.ok()) return "";
  const std::string commit(absl::StripAsciiWhitespace(*text));
  return IsCommit(commit) ? commit : "";
}

std::string HubCache::SnapshotPath(const std::string& repository, const std::string& commit) const {
  return absl::StrCat(ModelPath(repository), "/snapshots/", commit);
}

std::string HubCache::BlobPath(const std::string& repository, const std::string& etag) const {
  return absl::StrCat(ModelPath(repository), "/blobs/", etag);
}

std::string HubCache::LockPath(const std::string& repository, const std::string& etag) const {
  return absl::StrCat(root_, "/.locks/models--", absl::StrReplaceAll(repository, {{"/", "--"}}),
                      "/", etag, ".lock");
}

absl::Status HubCache::Link(const std::string& repository, const std::string& commit,
                            const std::string& path, const std::string& etag) const {
  const fs::path link = fs::path(SnapshotPath(repository, commit)) / path;
  RETURN_IF_ERROR(MakeDirectories(link.parent_path().string()));
  const fs::path target =
      fs::path(BlobPath(repository, etag)).lexically_relative(link.parent_path());
  std::error_code error;
  if (fs::read_symlink(link, error) == target && !error) return absl::OkStatus();
  const fs::path temporary = link.parent_path() / MakeRandomId(".link-");
  error.clear();
  fs::create_symlink(target, temporary, error);
  if (!error) fs::rename(temporary, link, error);
  if (error) return ErrnoStatus(error.value(), absl::StrCat("cannot link ", link.string()));
  return absl::OkStatus();
}

absl::Status HubCache::RememberRevision(const HubReference& reference,
                                        const std::string& commit) const {
  if (reference.revision == commit || FindCommit(reference) == commit) return absl::OkStatus();
  const std::string path =
      absl::StrCat(ModelPath(reference.repository), "/refs/", reference.revision);
  RETURN_IF_ERROR(MakeDirectories(fs::path(path).parent_path().string()));
  return WriteFileAtomically(path, commit);
}

std::string MissingOfModel(const std::string& snapshot) {
  std::error_code error;
  const auto has = [&](const std::string& path) {
    return fs::is_regular_file(fs::path(snapshot) / path, error);
  };
  bool gguf = false;
  for (const fs::directory_entry& entry : fs::directory_iterator(snapshot, error)) {
    gguf = gguf || (entry.path().extension() == ".gguf" && entry.is_regular_file(error));
  }
  if (!has("config.json")) return gguf ? "" : "config.json";
  if (has("model.safetensors")) return "";
  const std::string index = "model.safetensors.index.json";
  if (!has(index)) return gguf ? "" : "model.safetensors";
  if (fs::file_size(fs::path(snapshot) / index, error) > kMaxIndexBytes) return index;
  const absl::StatusOr<std::string> text = ReadFile(JoinPath(snapshot, index));
  const Json json = text.ok() ? Json::parse(*text, nullptr, false) : Json();
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (!json.is_object() || map == json.end() || !map->is_object()) return index;
  for (const Json& shard : *map) {
    if (!shard.is_string() || !has(shard.get<std::string>())) {
      return shard.is_string() ? shard.get<std::string>() : index;
    }
  }
  return "";
}

absl::StatusOr<WaitingFileLock> WaitingFileLock::Acquire(const std::string& path,
                                                         const std::function<bool()>& cancelled) {
  RETURN_IF_ERROR(MakeDirectories(fs::path(path).parent_path().string()));
  while (true) {
    const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, kLockMode);
    if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot open the lock ", path));
    while (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK && errno != EINTR) {
        const int error = errno;
        close(descriptor);
        return ErrnoStatus(error, absl::StrCat("cannot lock ", path));
      }
      if (cancelled && cancelled()) {
        close(descriptor);
        return absl::CancelledError("given up by request");
      }
      absl::SleepFor(kLockPoll);
    }
    // Some clients remove the file when they are done: a lock on what has no name locks nobody out.
    struct stat held, named;
    if (fstat(descriptor, &held) == 0 && stat(path.c_str(), &named) == 0 &&
        held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
      return WaitingFileLock(descriptor);
    }
    close(descriptor);
  }
}

WaitingFileLock::WaitingFileLock(WaitingFileLock&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)) {}

WaitingFileLock::~WaitingFileLock() {
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace offshoot
