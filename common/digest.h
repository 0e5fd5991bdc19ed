// SHA-256 digests, written "sha256:<64 lower-case hex digits>". Pure, thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(absl::string_view data);
  std::string Finish();  // "sha256:..."; the object cannot be used afterwards

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string DigestOf(absl::string_view data);
// Reads in 1 MiB pieces. NOT_FOUND or the errno's status, naming the path.
absl::StatusOr<std::string> DigestOfFile(const std::string& path);
bool IsDigest(absl::string_view text);

// A file by its place in a directory and its bytes; path is relative with '/', or "" for a plain
// file.
struct FileEntry {
  std::string path;
  std::string digest;
  std::int64_t size_bytes = 0;
  bool operator==(const FileEntry&) const = default;
};

// Digest over the sorted lines "<digest>  <path>\n": pins every byte of a set of files.
std::string DigestOfFiles(std::vector<FileEntry> files);

}  // namespace offshoot
