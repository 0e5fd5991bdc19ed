#include "coordinator/artifacts.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

constexpr std::size_t kPrefixLength = 7;  // "sha256:"
constexpr std::int64_t kMaxArtifactBytes = std::int64_t{4} << 40;
// Left free for the store and the logs when an artifact is taken in.
constexpr std::int64_t kReservedBytes = std::int64_t{64} << 20;

absl::StatusOr<std::int64_t> FileSize(int descriptor, const std::string& path) {
  struct stat info;
  if (fstat(descriptor, &info) != 0) return ErrnoStatus(errno, absl::StrCat("reading ", path));
  return static_cast<std::int64_t>(info.st_size);
}

absl::Time ModifiedTime(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return absl::InfiniteFuture();
  return absl::TimeFromTimespec(info.st_mtim);
}

}  // namespace

ArtifactUpload::~ArtifactUpload() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::Status ArtifactUpload::Append(absl::string_view data) {
  if (already_there_ || data.empty()) return absl::OkStatus();
  if (!directory_.Owns(*this)) {
    return absl::AbortedError(
        absl::StrCat("artifact ", digest_,
                     " is being uploaded by somebody else as well; ask for its"
                     " offset and go on from there"));
  }
  if (offset_ + static_cast<std::int64_t>(data.size()) > size_bytes_) {
    return absl::OutOfRangeError(absl::StrCat("artifact ", digest_, " was announced with ",
                                              size_bytes_, " bytes; more were sent"));
  }
  if (hash_ != nullptr) hash_->Update(data);
  while (!data.empty()) {
    const ssize_t written = pwrite(descriptor_, data.data(), data.size(), offset_);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, absl::StrCat("storing artifact ", digest_));
    data.remove_prefix(static_cast<std::size_t>(written));
    offset_ += written;
  }
  return absl::OkStatus();
}

absl::Status ArtifactUpload::Finish() {
  if (already_there_) return absl::OkStatus();
  if (!directory_.Owns(*this)) {
    return absl::AbortedError(
        absl::StrCat("artifact ", digest_, " was taken over by another upload"));
  }
  if (offset_ != size_bytes_) {
    return absl::OutOfRangeError(absl::StrCat("the upload of ", digest_, " ended after ", offset_,
                                              " of ", size_bytes_, " bytes; send the rest"));
  }
  const std::string path = directory_.PathOf(digest_);
  const std::string part = path + ".part";
  std::string digest;
  if (hash_ != nullptr) {
    digest = hash_->Finish();
  } else {
    ASSIGN_OR_RETURN(digest, DigestOfFile(part));
  }
  if (digest != digest_) {
    unlink(part.c_str());
    return absl::DataLossError(absl::StrCat("the uploaded bytes have the digest ", digest, ", not ",
                                            digest_, "; send them again from the beginning"));
  }
  if (fsync(descriptor_) != 0) return ErrnoStatus(errno, absl::StrCat("syncing ", part));
  if (rename(part.c_str(), path.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("renaming ", part));
  }
  return SyncDirectory(std::filesystem::path(path).parent_path().string());
}

ArtifactReader::~ArtifactReader() { close(descriptor_); }

absl::StatusOr<std::string> ArtifactReader::Read(std::int64_t offset, std::size_t max_bytes) const {
  std::string data(std::min<std::int64_t>(static_cast<std::int64_t>(max_bytes),
                                          std::max<std::int64_t>(0, size_bytes_ - offset)),
                   '\0');
  std::size_t have = 0;
  while (have < data.size()) {
    const ssize_t got = pread(descriptor_, data.data() + have, data.size() - have,
                              offset + static_cast<std::int64_t>(have));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "reading an artifact");
    if (got == 0) return absl::DataLossError("an artifact is shorter than it was");
    have += static_cast<std::size_t>(got);
  }
  return data;
}

absl::StatusOr<std::unique_ptr<ArtifactDirectory>> ArtifactDirectory::Open(
    const std::string& root) {
  RETURN_IF_ERROR(MakeDirectories(root));
  return std::unique_ptr<ArtifactDirectory>(new ArtifactDirectory(root));
}

std::string ArtifactDirectory::PathOf(absl::string_view digest) const {
  const absl::string_view hex = digest.substr(kPrefixLength);
  return absl::StrCat(root_, "/", hex.substr(0, 2), "/", hex);
}

std::optional<std::int64_t> ArtifactDirectory::Find(const std::string& digest) const {
  if (!IsDigest(digest)) return std::nullopt;
  const std::string path = PathOf(digest);
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return std::nullopt;
  utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
  return static_cast<std::int64_t>(info.st_size);
}

bool ArtifactDirectory::HasAll(const std::vector<FileEntry>& files, std::string* missing) const {
  for (const FileEntry& file : files) {
    const std::optional<std::int64_t> size = Find(file.digest);
    if (!size || *size != file.size_bytes) {
      *missing = file.path.empty() ? file.digest : file.path;
      return false;
    }
  }
  return true;
}

std::int64_t ArtifactDirectory::PartSize(const std::string& digest) const {
  struct stat info;
  const std::string part = PathOf(digest) + ".part";
  return stat(part.c_str(), &info) == 0 ? static_cast<std::int64_t>(info.st_size) : 0;
}

absl::StatusOr<std::unique_ptr<ArtifactUpload>> ArtifactDirectory::BeginUpload(
    const std::string& digest, std::int64_t size_bytes, std::int64_t offset) {
  if (!IsDigest(digest)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", digest.substr(0, 80), "' is no digest; write sha256:<64 hex digits>"));
  }
  if (size_bytes < 0 || size_bytes > kMaxArtifactBytes || offset < 0 || offset > size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "an upload of ", size_bytes, " bytes from offset ", offset, " makes no sense"));
  }
  std::unique_ptr<ArtifactUpload> upload(new ArtifactUpload(*this, digest, size_bytes));
  if (const std::optional<std::int64_t> size = Find(digest)) {
    upload->already_there_ = true;
    return upload;
  }
  const std::string part = PathOf(digest) + ".part";
  RETURN_IF_ERROR(MakeDirectories(std::filesystem::path(part).parent_path().string()));
  struct statvfs disk;
  if (statvfs(root_.c_str(), &disk) == 0) {
    const auto free_bytes = static_cast<std::int64_t>(disk.f_bavail * disk.f_frsize);
    if (free_bytes - kReservedBytes < size_bytes - offset) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the coordinator's disk has ", free_bytes >> 20, " MiB free, not the ",
                       (size_bytes - offset + kReservedBytes) >> 20, " MiB that artifact ", digest,
                       " needs; free space under ", root_));
    }
  }
  {
    absl::MutexLock lock(&mutex_);
    upload->generation_ = next_generation_++;
    uploads_[digest] = upload->generation_;
  }
  upload->descriptor_ = open(part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (upload->descriptor_ < 0) return ErrnoStatus(errno, absl::StrCat("creating ", part));
  ASSIGN_OR_RETURN(std::int64_t have, FileSize(upload->descriptor_, part));
  if (offset > have) {
    return absl::OutOfRangeError(
        absl::StrCat("only ", have, " bytes of ", digest, " are there; go on from that offset"));
  }
  if (ftruncate(upload->descriptor_, offset) != 0) {
    return ErrnoStatus(errno, absl::StrCat("truncating ", part));
  }
  upload->offset_ = offset;
  if (offset == 0) upload->hash_ = std::make_unique<Sha256>();
  return upload;
}

bool ArtifactDirectory::Owns(const ArtifactUpload& upload) const {
  absl::MutexLock lock(&mutex_);
  const auto it = uploads_.find(upload.digest_);
  return it != uploads_.end() && it->second == upload.generation_;
}

absl::StatusOr<std::unique_ptr<ArtifactReader>> ArtifactReader::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("opening ", path));
  absl::StatusOr<std::int64_t> size = FileSize(descriptor, path);
  std::unique_ptr<ArtifactReader> reader(new ArtifactReader(descriptor, size.value_or(0)));
  if (!size.ok()) return size.status();
  return reader;
}

absl::StatusOr<std::unique_ptr<ArtifactReader>> ArtifactDirectory::OpenArtifact(
    const std::string& digest) const {
  if (!Find(digest)) {
    return absl::NotFoundError(absl::StrCat("there is no artifact ", digest.substr(0, 80)));
  }
  return ArtifactReader::Open(PathOf(digest));
}

void ArtifactDirectory::RemoveIfOlder(const std::string& digest, absl::Time older_than) {
  if (!IsDigest(digest)) return;
  const std::string path = PathOf(digest);
  if (ModifiedTime(path) <= older_than) unlink(path.c_str());
}

void ArtifactDirectory::Sweep(absl::Time older_than,
                              absl::FunctionRef<bool(const std::string&)> is_needed) {
  const absl::StatusOr<std::vector<std::string>> files = ListFilesBelow(root_);
  if (!files.ok()) return;
  for (const std::string& file : *files) {
    const std::string path = JoinPath(root_, file);
    if (ModifiedTime(path) > older_than) continue;
    const std::string name = std::filesystem::path(file).filename().string();
    const std::string digest = absl::StrCat("sha256:", name);
    if (absl::EndsWith(name, ".part") || (IsDigest(digest) && !is_needed(digest))) {
      unlink(path.c_str());
    }
  }
  absl::MutexLock lock(&mutex_);
  absl::erase_if(uploads_, [this](const auto& entry) { return Find(entry.first).has_value(); });
}

}  // namespace offshoot
