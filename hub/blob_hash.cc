#include "hub/blob_hash.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/files.h"

namespace offshoot {
namespace {

constexpr std::size_t kPieceBytes = 1 << 20;
// Git's name is only needed of small files; the hub keeps no file beyond this as a plain blob.
constexpr std::int64_t kMaxGitBytes = 256 << 20;

}  // namespace

struct BlobHash::State {
  Sha256 sha256;
  EVP_MD_CTX* git = nullptr;
  std::int64_t done = 0;
  ~State() { EVP_MD_CTX_free(git); }
};

BlobHash::BlobHash(int descriptor, std::int64_t size_bytes)
    : descriptor_(descriptor), size_bytes_(size_bytes), state_(std::make_unique<State>()) {
  if (size_bytes <= kMaxGitBytes) {
    state_->git = EVP_MD_CTX_new();
    const std::string header = absl::StrCat("blob ", size_bytes) + '\0';
    EVP_DigestInit_ex(state_->git, EVP_sha1(), nullptr);
    EVP_DigestUpdate(state_->git, header.data(), header.size());
  }
  thread_ = std::thread([this] { Run(); });
}

BlobHash::~BlobHash() {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void BlobHash::Advance(std::int64_t written_bytes) {
  absl::MutexLock lock(&mutex_);
  written_ = std::max(written_, written_bytes);
}

void BlobHash::Run() {
  std::vector<char> piece(kPieceBytes);
  const auto can_go_on = [this] {
    mutex_.AssertReaderHeld();
    const std::int64_t ready = written_ - state_->done;
    return ending_ || ready >= static_cast<std::int64_t>(kPieceBytes) || written_ == size_bytes_;
  };
  while (state_->done < size_bytes_) {
    std::int64_t until;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&can_go_on));
      if (ending_) return;
      until = written_;
    }
    while (state_->done < until) {
      const std::size_t wanted =
          std::min<std::size_t>(kPieceBytes, static_cast<std::size_t>(until - state_->done));
      const ssize_t got = pread(descriptor_, piece.data(), wanted, state_->done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        absl::MutexLock lock(&mutex_);
        failed_ = true;
        return;
      }
      const absl::string_view data(piece.data(), static_cast<std::size_t>(got));
      state_->sha256.Update(data);
      if (state_->git != nullptr) EVP_DigestUpdate(state_->git, data.data(), data.size());
      state_->done += got;
    }
  }
}

absl::StatusOr<BlobDigests> BlobHash::Finish() {
  thread_.join();
  {
    absl::MutexLock lock(&mutex_);
    if (failed_ || state_->done != size_bytes_) {
      return absl::DataLossError("what was downloaded could not be read again");
    }
  }
  BlobDigests digests;
  digests.sha256 = state_->sha256.Finish();
  if (state_->git != nullptr) {
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_DigestFinal_ex(state_->git, bytes, &size);
    digests.git =
        absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes), size));
  }
  return digests;
}

absl::StatusOr<BlobDigests> DigestBlob(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (descriptor < 0 || fstat(descriptor, &info) != 0) {
    const int error = errno;
    if (descriptor >= 0) close(descriptor);
    return ErrnoStatus(error, absl::StrCat("cannot read ", path));
  }
  BlobHash hash(descriptor, info.st_size);
  hash.Advance(info.st_size);
  absl::StatusOr<BlobDigests> digests = hash.Finish();
  close(descriptor);
  return digests;
}

}  // namespace offshoot
