// The log file of an attempt: appended, bounded, its last lines kept at hand. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/descriptor.h"

namespace offshoot::worker {

class AttemptLog {
 public:
  // Appends to what is there.
  static absl::StatusOr<AttemptLog> Open(const std::string& path, std::int64_t max_bytes,
                                         std::size_t tail_bytes);
  // Returns what was taken of text: all, or less once max_bytes is reached (with a last line that
  // says so). A full disk loses log text, never the attempt.
  absl::string_view Append(absl::string_view text);
  std::int64_t size_bytes() const { return size_bytes_; }
  // The last whole lines, at most tail_bytes.
  std::string Tail() const;

 private:
  AttemptLog(Descriptor file, std::int64_t size_bytes, std::int64_t max_bytes,
             std::size_t tail_bytes)
      : file_(std::move(file)),
        size_bytes_(size_bytes),
        max_bytes_(max_bytes),
        tail_bytes_(tail_bytes) {}

  Descriptor file_;
  std::int64_t size_bytes_;
  std::int64_t max_bytes_;
  std::size_t tail_bytes_;
  std::string tail_;
};

}  // namespace offshoot::worker
