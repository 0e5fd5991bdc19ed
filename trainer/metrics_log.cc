#include "trainer/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "trainer/error.h"
#include "trainer/weights/durable_file.h"

namespace offshoot::trainer {
namespace {

[[noreturn]] void Fail(const std::string& path, int error) {
  throw Error(
      error == ENOSPC || error == EDQUOT || error == EFBIG ? Reason::kDiskFull : Reason::kInternal,
      "cannot write " + path + ": " + std::strerror(error) + ".");
}

}  // namespace

MetricsLog::MetricsLog(const std::string& path, const std::string& restore_from) : path_(path) {
  if (!restore_from.empty()) {
    CopyFileDurably(restore_from, path_);
  }
  const int truncate = restore_from.empty() ? O_TRUNC : 0;
  descriptor_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | truncate, 0644);
  if (descriptor_ < 0) {
    Fail(path_, errno);
  }
}

MetricsLog::~MetricsLog() { close(descriptor_); }

void MetricsLog::Append(const nlohmann::json& line) {
  const std::string text = line.dump() + "\n";
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = write(descriptor_, text.data() + done, text.size() - done);
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      Fail(path_, errno);
    }
    done += static_cast<std::size_t>(written);
  }
}

}  // namespace offshoot::trainer
