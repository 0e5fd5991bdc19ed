#include "worker/attempt_log.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/files.h"

namespace offshoot::worker {
namespace {

void WriteWhatFits(int descriptor, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t wrote = write(descriptor, text.data(), text.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(wrote));
  }
}

}  // namespace

absl::StatusOr<AttemptLog> AttemptLog::Open(const std::string& path, std::int64_t max_bytes,
                                            std::size_t tail_bytes) {
  Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!file.valid()) return ErrnoStatus(errno, absl::StrCat("cannot open the log ", path));
  struct stat info;
  if (fstat(file.get(), &info) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot read the size of the log ", path));
  }
  return AttemptLog(std::move(file), info.st_size, max_bytes, tail_bytes);
}

absl::string_view AttemptLog::Append(absl::string_view text) {
  if (size_bytes_ >= max_bytes_) text = {};
  text =
      text.substr(0, static_cast<std::size_t>(std::max<std::int64_t>(0, max_bytes_ - size_bytes_)));
  if (text.empty()) return text;
  WriteWhatFits(file_.get(), text);
  size_bytes_ += static_cast<std::int64_t>(text.size());
  if (size_bytes_ >= max_bytes_) {
    WriteWhatFits(file_.get(), "\n[the log is cut here: it reached its bound]\n");
  }
  tail_.append(text.data(), text.size());
  if (tail_.size() > 3 * tail_bytes_) tail_.erase(0, tail_.size() - 2 * tail_bytes_);
  return text;
}

std::string AttemptLog::Tail() const {
  if (tail_.size() <= tail_bytes_) return tail_;
  std::string last = tail_.substr(tail_.size() - tail_bytes_);
  const std::size_t line = last.find('\n');
  return line == std::string::npos ? last : last.substr(line + 1);
}

}  // namespace offshoot::worker
