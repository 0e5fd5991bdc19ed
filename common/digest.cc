#include "common/digest.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace offshoot {
namespace {

constexpr absl::string_view kPrefix = "sha256:";
constexpr std::size_t kHexDigits = 64;
constexpr std::size_t kReadBytes = 1 << 20;

}  // namespace

// The functions of SHA-256 itself, which OpenSSL 3 would rather have called through EVP: that reads
// its configuration and sets up all its algorithms first, which takes longer than a short command.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

struct Sha256::Context {
  SHA256_CTX sha;
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  if (SHA256_Init(&context_->sha) != 1) std::abort();
}

Sha256::~Sha256() = default;

void Sha256::Update(absl::string_view data) {
  if (SHA256_Update(&context_->sha, data.data(), data.size()) != 1) std::abort();
}

std::string Sha256::Finish() {
  unsigned char bytes[SHA256_DIGEST_LENGTH];
  if (SHA256_Final(bytes, &context_->sha) != 1) std::abort();
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text(kPrefix);
  for (const unsigned char byte : bytes) {
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

#pragma GCC diagnostic pop

std::string DigestOf(absl::string_view data) {
  Sha256 hash;
  hash.Update(data);
  return hash.Finish();
}

absl::StatusOr<std::string> DigestOfFile(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
  Sha256 hash;
  // Not filled with zeros: of a small file only its own pages are touched.
  const auto buffer = std::make_unique_for_overwrite<char[]>(kReadBytes);
  while (true) {
    const ssize_t got = read(descriptor, buffer.get(), kReadBytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const absl::Status status = ErrnoStatus(errno, absl::StrCat("cannot read ", path));
      close(descriptor);
      return status;
    }
    if (got == 0) break;
    hash.Update(absl::string_view(buffer.get(), static_cast<std::size_t>(got)));
  }
  close(descriptor);
  return hash.Finish();
}

bool IsDigest(absl::string_view text) {
  if (text.size() != kPrefix.size() + kHexDigits || text.substr(0, kPrefix.size()) != kPrefix) {
    return false;
  }
  text.remove_prefix(kPrefix.size());
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string DigestOfFiles(std::vector<FileEntry> files) {
  std::vector<std::string> lines;
  lines.reserve(files.size());
  for (const FileEntry& file : files) {
    lines.push_back(absl::StrCat(file.digest, "  ", file.path, "\n"));
  }
  std::sort(lines.begin(), lines.end());
  Sha256 hash;
  for (const std::string& line : lines) hash.Update(line);
  return hash.Finish();
}

}  // namespace offshoot
