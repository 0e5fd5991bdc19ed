#include "hub/download.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "hub/blob_hash.h"

namespace offshoot {
namespace {

namespace fs = std::filesystem;

// Less than this between two breaks is no progress: a server that gives a byte a try must not hold
// a worker for ever.
constexpr std::int64_t kProgressBytes = 1 << 20;
constexpr absl::Duration kProgressEvery = absl::Milliseconds(250);

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  const int value_;
};

std::int64_t SizeOf(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) ? info.st_size : -1;
}

absl::Status WriteAt(int descriptor, absl::string_view data, std::int64_t offset,
                     const std::string& path) {
  while (!data.empty()) {
    const ssize_t written = pwrite(descriptor, data.data(), data.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, absl::StrCat("cannot write ", path));
    data.remove_prefix(static_cast<std::size_t>(written));
    offset += written;
  }
  return absl::OkStatus();
}

// As huggingface_hub reads it: W/"x" and "x" are x.
std::string EtagOf(const HttpResponse& response) {
  std::string etag = response.Header("x-linked-etag");
  if (etag.empty()) etag = response.Header("etag");
  absl::string_view text = etag;
  absl::ConsumePrefix(&text, "W/");
  absl::ConsumePrefix(&text, "\"");
  absl::ConsumeSuffix(&text, "\"");
  return std::string(text);
}

// "bytes FIRST-LAST/TOTAL"
bool ParseContentRange(absl::string_view text, std::int64_t* first, std::int64_t* total) {
  if (!absl::ConsumePrefix(&text, "bytes ")) return false;
  const std::size_t dash = text.find('-');
  const std::size_t slash = text.find('/');
  return dash != absl::string_view::npos && slash != absl::string_view::npos && dash < slash &&
         absl::SimpleAtoi(text.substr(0, dash), first) &&
         absl::SimpleAtoi(text.substr(slash + 1), total);
}

}  // namespace

// One Fetch: its threads take files from a list, the largest first.
class HubDownloader::Job {
 public:
  Job(const HubDownloader& owner, const HubSnapshot& snapshot, const HubDownloadHooks& hooks)
      : owner_(owner), snapshot_(snapshot), hooks_(hooks), files_(snapshot.files) {
    std::stable_sort(files_.begin(), files_.end(), [](const HubFile& a, const HubFile& b) {
      return a.size_bytes > b.size_bytes;
    });
    for (const HubFile& file : files_) total_bytes_ += file.size_bytes;
  }

  absl::Status Run() {
    RETURN_IF_ERROR(CheckDisk());
    const int count = std::min<int>(owner_.options_.files_at_once, static_cast<int>(files_.size()));
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back([this] { Work(); });
    for (std::thread& thread : threads) thread.join();
    absl::MutexLock lock(&mutex_);
    return failed_;
  }

 private:
  // What one file's transfer works on.
  struct Transfer {
    const HubFile& file;
    const std::string partial;
    const int descriptor;
    std::int64_t offset = 0;   // bytes that are there
    std::int64_t counted = 0;  // of them, in the job's progress
    std::unique_ptr<BlobHash> hash;
  };

  std::string NameOf(const HubFile& file) const {
    return absl::StrCat(snapshot_.repository, "'s ", file.path);
  }
  HubReference Reference() const { return {snapshot_.repository, snapshot_.commit}; }

  bool Cancelled() const { return stop_.load() || (hooks_.cancelled && hooks_.cancelled()); }

  absl::Status CheckDisk() const {
    std::int64_t wanted = 0;
    for (const HubFile& file : files_) {
      const std::string blob = owner_.cache_.BlobPath(snapshot_.repository, file.etag);
      if (SizeOf(blob) == file.size_bytes) continue;
      wanted += file.size_bytes - std::max<std::int64_t>(SizeOf(PartialPath(blob)), 0);
    }
    RETURN_IF_ERROR(MakeDirectories(owner_.cache_.root()));
    struct statvfs disk;
    if (wanted <= 0 || statvfs(owner_.cache_.root().c_str(), &disk) != 0) return absl::OkStatus();
    const auto free = static_cast<std::int64_t>(disk.f_bavail * disk.f_frsize);
    if (free >= wanted + owner_.options_.disk_reserve_bytes) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat(snapshot_.repository, " needs ", wanted,
                     " more bytes in the Hugging Face cache ", owner_.cache_.root(), ", where ",
                     free, " are free; free some space, or point HF_HOME to a larger disk"));
  }

  static std::string PartialPath(const std::string& blob) { return blob + ".offshoot.incomplete"; }

  void Work() {
    HttpClient http(owner_.environment_, owner_.options_.limits);
    while (true) {
      const std::size_t index = next_.fetch_add(1);
      if (index >= files_.size() || Cancelled()) break;
      const absl::Status status = FetchFile(files_[index], http);
      if (status.ok()) continue;
      absl::MutexLock lock(&mutex_);
      // The first failure is the cause; what it stops ends as cancelled.
      if (failed_.ok()) failed_ = status;
      stop_ = true;
      return;
    }
    if (hooks_.cancelled && hooks_.cancelled()) {
      absl::MutexLock lock(&mutex_);
      if (failed_.ok()) failed_ = absl::CancelledError("given up by request");
    }
  }

  absl::Status FetchFile(const HubFile& file, HttpClient& http) {
    const std::string blob = owner_.cache_.BlobPath(snapshot_.repository, file.etag);
    const auto cancelled = [this] { return Cancelled(); };
    ASSIGN_OR_RETURN(const WaitingFileLock lock,
                     WaitingFileLock::Acquire(
                         owner_.cache_.LockPath(snapshot_.repository, file.etag), cancelled));
    ASSIGN_OR_RETURN(const bool there, IsThere(file, blob));
    if (there) {
      Count(file.size_bytes);
    } else {
      RETURN_IF_ERROR(MakeDirectories(fs::path(blob).parent_path().string()));
      RETURN_IF_ERROR(Download(file, blob, http));
    }
    return owner_.cache_.Link(snapshot_.repository, snapshot_.commit, file.path, file.etag);
  }

  // What is there is trusted only for its digest.
  absl::StatusOr<bool> IsThere(const HubFile& file, const std::string& blob) const {
    if (SizeOf(blob) != file.size_bytes) return false;
    if (!file.digest.empty() && hooks_.digest_of) {
      ASSIGN_OR_RETURN(const std::string digest, hooks_.digest_of(blob));
      return digest == file.digest;
    }
    ASSIGN_OR_RETURN(const BlobDigests digests, DigestBlob(blob));
    return Matches(file, digests);
  }

  static bool Matches(const HubFile& file, const BlobDigests& digests) {
    if (!file.digest.empty() && digests.sha256 != file.digest) return false;
    return file.etag ==
           (file.etag.size() == digests.git.size() ? digests.git : digests.sha256.substr(7));
  }

  absl::Status Download(const HubFile& file, const std::string& blob, HttpClient& http) {
    const std::string partial = PartialPath(blob);
    for (const bool last_try : {false, true}) {
      const Descriptor descriptor(open(partial.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
      if (descriptor.get() < 0) return ErrnoStatus(errno, absl::StrCat("cannot make ", partial));
      Transfer transfer{file, partial, descriptor.get(), 0, 0, nullptr};
      const std::int64_t there = std::max<std::int64_t>(SizeOf(partial), 0);
      const bool resumed = there > 0 && there <= file.size_bytes;
      if (there > file.size_bytes) RETURN_IF_ERROR(Restart(transfer));
      if (resumed) transfer.offset = there;
      transfer.hash = std::make_unique<BlobHash>(descriptor.get(), file.size_bytes);
      Advance(transfer, transfer.offset);
      RETURN_IF_ERROR(Transmit(transfer, http));
      ASSIGN_OR_RETURN(const BlobDigests digests, transfer.hash->Finish());
      if (Matches(file, digests)) {
        if (rename(partial.c_str(), blob.c_str()) != 0) {
          return ErrnoStatus(errno, absl::StrCat("cannot make ", blob));
        }
        if (hooks_.fetched) hooks_.fetched(blob, digests.sha256);
        return absl::OkStatus();
      }
      unlink(partial.c_str());
      Count(-transfer.counted);
      // The part from before may have been damaged: that deserves one fresh start, no more.
      if (last_try || !resumed) {
        return absl::DataLossError(
            absl::StrCat(NameOf(file), " came from ", owner_.environment_.endpoint,
                         " with the digest ", digests.sha256, " where ",
                         file.digest.empty() ? absl::StrCat("git object ", file.etag) : file.digest,
                         " was announced; it was thrown away: the server or the way to it "
                         "changes files"));
      }
    }
    return absl::InternalError("unreachable");
  }

  absl::Status Restart(Transfer& transfer) {
    if (ftruncate(transfer.descriptor, 0) != 0) {
      return ErrnoStatus(errno, absl::StrCat("cannot cut ", transfer.partial));
    }
    Count(-transfer.counted);
    transfer.offset = transfer.counted = 0;
    if (transfer.hash != nullptr) {
      transfer.hash = std::make_unique<BlobHash>(transfer.descriptor, transfer.file.size_bytes);
    }
    return absl::OkStatus();
  }

  void Advance(Transfer& transfer, std::int64_t offset) {
    transfer.offset = offset;
    Count(offset - transfer.counted);
    transfer.counted = offset;
    transfer.hash->Advance(offset);
  }

  // Until all bytes are there, or nothing has come several times in a row.
  absl::Status Transmit(Transfer& transfer, HttpClient& http) {
    const HubDownloadOptions& options = owner_.options_;
    int tries = 0;
    absl::Duration wait = options.first_wait;
    while (transfer.offset < transfer.file.size_bytes) {
      const std::int64_t before = transfer.offset;
      absl::Duration asked;
      const absl::Status status = TransmitOnce(transfer, http, &asked);
      if (status.ok()) continue;
      if (!absl::IsUnavailable(status)) return status;
      if (transfer.offset >= before + kProgressBytes) {
        tries = 0;
        wait = options.first_wait;
      }
      if (++tries >= options.tries_without_progress || asked > options.longest_wait) {
        return absl::UnavailableError(
            absl::StrCat("cannot download ", NameOf(transfer.file), ": ", status.message(), "; ",
                         transfer.offset, " of ", transfer.file.size_bytes,
                         " bytes are there, and the next try goes on from them"));
      }
      const absl::Time until = absl::Now() + std::max(wait, asked);
      while (absl::Now() < until && !Cancelled()) absl::SleepFor(absl::Milliseconds(20));
      if (Cancelled()) return absl::CancelledError("given up by request");
      wait = std::min(wait * 2, options.longest_wait);
    }
    return absl::OkStatus();
  }

  absl::Status TransmitOnce(Transfer& transfer, HttpClient& http, absl::Duration* asked) {
    const HubFile& file = transfer.file;
    HttpRequest request;
    request.url = absl::StrCat(owner_.environment_.endpoint, "/", snapshot_.repository, "/resolve/",
                               snapshot_.commit, "/", EncodePath(file.path));
    // Compressed, the bytes on the way would not be those of the file.
    request.headers = {"Accept-Encoding: identity"};
    if (transfer.offset > 0) {
      request.headers.push_back(absl::StrCat("Range: bytes=", transfer.offset, "-"));
    }
    request.cancelled = [this] { return Cancelled(); };
    request.on_start = [&](const HttpResponse& response) { return Begin(transfer, response); };
    request.on_data = [&](absl::string_view data) -> absl::Status {
      if (transfer.offset + static_cast<std::int64_t>(data.size()) > file.size_bytes) {
        return Lie(file, absl::StrCat("sends more than the ", file.size_bytes, " bytes"));
      }
      RETURN_IF_ERROR(WriteAt(transfer.descriptor, data, transfer.offset, transfer.partial));
      Advance(transfer, transfer.offset + static_cast<std::int64_t>(data.size()));
      return absl::OkStatus();
    };
    ASSIGN_OR_RETURN(const HttpResponse response, http.Send(request));
    if (response.status == 416) return Restart(transfer);
    if (response.status < 200 || response.status > 299) {
      *asked = RetryAfter(response);
      return HubRefusal(owner_.environment_, response, Reference(), NameOf(file));
    }
    if (transfer.offset < file.size_bytes) {
      return absl::UnavailableError(absl::StrCat(ShownUrl(request.url), ": the answer ended after ",
                                                 transfer.offset, " of ", file.size_bytes,
                                                 " bytes"));
    }
    return absl::OkStatus();
  }

  absl::Status Lie(const HubFile& file, absl::string_view what) const {
    return absl::FailedPreconditionError(
        absl::StrCat(owner_.environment_.endpoint, " ", what, " that it announced for ",
                     NameOf(file), "; it is not to be trusted with this model: check HF_ENDPOINT"));
  }

  // Does the answer fit what was announced? Errors here end the download.
  absl::Status Begin(Transfer& transfer, const HttpResponse& response) {
    const HubFile& file = transfer.file;
    const std::string commit = response.Header("x-repo-commit");
    if (!commit.empty() && commit != snapshot_.commit) {
      return Lie(file, absl::StrCat("answers with commit ", commit.substr(0, 64), " in place of ",
                                    snapshot_.commit));
    }
    const std::string etag = EtagOf(response);
    if (!etag.empty() && etag.size() == file.etag.size() && etag != file.etag) {
      return Lie(file, absl::StrCat("answers with the ETag ", etag, " in place of ", file.etag));
    }
    std::int64_t length = -1;
    const auto found = response.headers.find("content-length");
    const bool has_length =
        found != response.headers.end() && absl::SimpleAtoi(found->second, &length);
    if (response.status == 206) {
      std::int64_t first = -1;
      std::int64_t total = -1;
      const auto range = response.headers.find("content-range");
      if (range == response.headers.end() || !ParseContentRange(range->second, &first, &total) ||
          first != transfer.offset || total != file.size_bytes) {
        return Lie(file,
                   absl::StrCat("answers with the range \"",
                                range == response.headers.end() ? "" : range->second.substr(0, 64),
                                "\" in place of bytes ", transfer.offset, " to ", file.size_bytes));
      }
    } else if (transfer.offset > 0) {
      RETURN_IF_ERROR(Restart(transfer));  // it does not know ranges
    }
    if (has_length && length != file.size_bytes - transfer.offset) {
      return Lie(file, absl::StrCat("sends ", length, " bytes in place of the ",
                                    file.size_bytes - transfer.offset));
    }
    return absl::OkStatus();
  }

  void Count(std::int64_t bytes) {
    const std::int64_t done = done_bytes_.fetch_add(bytes) + bytes;
    if (!hooks_.progress) return;
    absl::MutexLock lock(&mutex_);
    const absl::Time now = absl::Now();
    if (now < next_report_ && done < total_bytes_) return;
    next_report_ = now + kProgressEvery;
    hooks_.progress(done, total_bytes_);
  }

  const HubDownloader& owner_;
  const HubSnapshot& snapshot_;
  const HubDownloadHooks& hooks_;
  std::vector<HubFile> files_;
  std::int64_t total_bytes_ = 0;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::atomic<std::int64_t> done_bytes_{0};
  absl::Mutex mutex_;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  absl::Time next_report_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

absl::Status HubDownloader::Fetch(const HubSnapshot& snapshot, const std::string& revision,
                                  const HubDownloadHooks& hooks) const {
  if (environment_.cache.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("there is no place for ", snapshot.repository,
                                                      ": set HF_HOME to a directory"));
  }
  Job job(*this, snapshot, hooks);
  RETURN_IF_ERROR(job.Run());
  if (revision.empty()) return absl::OkStatus();
  return cache_.RememberRevision({snapshot.repository, revision}, snapshot.commit);
}

}  // namespace offshoot
