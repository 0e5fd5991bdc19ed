#include "coordinator/outputs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxRemembered = 4096;
constexpr std::size_t kTailBytes = 4096;

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags)
      : value_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }
  std::int64_t Size() const {
    struct stat info;
    return fstat(value_, &info) == 0 ? static_cast<std::int64_t>(info.st_size) : 0;
  }

 private:
  int value_;
};

absl::Status WriteAt(int descriptor, absl::string_view data, std::int64_t offset,
                     const std::string& path) {
  while (!data.empty()) {
    const ssize_t written = pwrite(descriptor, data.data(), data.size(), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, absl::StrCat("writing ", path));
    data.remove_prefix(static_cast<std::size_t>(written));
    offset += written;
  }
  return absl::OkStatus();
}

std::string ReadAt(int descriptor, std::int64_t offset, std::size_t max_bytes) {
  std::string data(max_bytes, '\0');
  ssize_t got = 0;
  do {
    got = pread(descriptor, data.data(), data.size(), offset);
  } while (got < 0 && errno == EINTR);
  data.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  return data;
}

std::string FormatStep(const StepRecord& step) {
  std::string line = absl::StrFormat(
      "%d %.17g %.17g %.17g %.17g %d %.17g %.17g", step.step, step.epoch, step.train_loss,
      step.grad_norm, step.learning_rate, step.tokens, step.step_seconds, step.tokens_per_second);
  if (step.eval_loss) absl::StrAppendFormat(&line, " %.17g", *step.eval_loss);
  for (const RankRecord& rank : step.ranks) {
    absl::StrAppendFormat(&line, " r%.6g:%.6g:%.6g", rank.share, rank.tokens_per_second,
                          rank.wait_seconds);
  }
  line.push_back('\n');
  return line;
}

bool ParseStep(absl::string_view line, StepRecord* step) {
  std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
  if (words.size() < 8) return false;
  bool good = absl::SimpleAtoi(words[0], &step->step) && absl::SimpleAtod(words[1], &step->epoch) &&
              absl::SimpleAtod(words[2], &step->train_loss) &&
              absl::SimpleAtod(words[3], &step->grad_norm) &&
              absl::SimpleAtod(words[4], &step->learning_rate) &&
              absl::SimpleAtoi(words[5], &step->tokens) &&
              absl::SimpleAtod(words[6], &step->step_seconds) &&
              absl::SimpleAtod(words[7], &step->tokens_per_second);
  for (std::size_t i = 8; good && i < words.size(); ++i) {
    if (absl::ConsumePrefix(&words[i], "r")) {
      const std::vector<absl::string_view> parts = absl::StrSplit(words[i], ':');
      RankRecord& rank = step->ranks.emplace_back();
      good = parts.size() == 3 && absl::SimpleAtod(parts[0], &rank.share) &&
             absl::SimpleAtod(parts[1], &rank.tokens_per_second) &&
             absl::SimpleAtod(parts[2], &rank.wait_seconds);
    } else {
      good = absl::SimpleAtod(words[i], &step->eval_loss.emplace());
    }
  }
  return good;
}

// What stands in the log for bytes that never came; exactly `bytes` long.
std::string GapText(std::int64_t bytes) {
  std::string text = absl::StrCat("\n[", bytes, " bytes of the log were lost here]\n");
  text.resize(static_cast<std::size_t>(bytes), ' ');
  if (!text.empty()) text.back() = '\n';
  return text;
}

}  // namespace

std::string AttemptOutputs::PathOf(const JobId& job_id, std::int32_t attempt,
                                   absl::string_view suffix) const {
  return absl::StrCat(root_, "/", job_id.value(), "/", attempt, suffix);
}

absl::Status AttemptOutputs::AppendLog(const JobId& job_id, std::int32_t attempt,
                                       std::int64_t offset, absl::string_view data) {
  const std::string path = PathOf(job_id, attempt, ".log");
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(MakeDirectories(std::filesystem::path(path).parent_path().string()));
  Descriptor file(path, O_WRONLY | O_CREAT);
  if (file.get() < 0) return ErrnoStatus(errno, absl::StrCat("opening ", path));
  const std::int64_t size = file.Size();
  if (offset < 0 || size >= limits_.log_bytes) return absl::OkStatus();
  if (offset < size) {
    if (offset + static_cast<std::int64_t>(data.size()) <= size) return absl::OkStatus();
    data.remove_prefix(static_cast<std::size_t>(size - offset));
    offset = size;
  }
  if (offset + static_cast<std::int64_t>(data.size()) > limits_.log_bytes) {
    return WriteAt(file.get(), "\n[the log reached its bound; the rest is dropped]\n",
                   limits_.log_bytes, path);
  }
  if (offset > size) RETURN_IF_ERROR(WriteAt(file.get(), GapText(offset - size), size, path));
  return WriteAt(file.get(), data, offset, path);
}

absl::Status AttemptOutputs::AppendMetrics(const JobId& job_id, std::int32_t attempt,
                                           const std::vector<StepRecord>& steps) {
  const std::pair<JobId, std::int32_t> key(job_id, attempt);
  const std::string path = PathOf(job_id, attempt, ".metrics");
  bool known = false;
  {
    absl::MutexLock lock(&mutex_);
    known = newest_.contains(key);
  }
  const std::int64_t last_on_disk = known ? 0 : LastStep(job_id, attempt);
  absl::MutexLock lock(&mutex_);
  if (newest_.size() > kMaxRemembered) newest_.clear();
  // After a restart only the step is known: better lose an evaluation than write one twice.
  auto [it, inserted] = newest_.try_emplace(key, last_on_disk, true);
  std::string text;
  for (const StepRecord& step : steps) {
    const std::pair<std::int64_t, bool> mark(step.step, step.eval_loss.has_value());
    if (mark <= it->second) continue;
    it->second = mark;
    text += FormatStep(step);
  }
  if (text.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(MakeDirectories(std::filesystem::path(path).parent_path().string()));
  Descriptor file(path, O_WRONLY | O_CREAT);
  if (file.get() < 0) return ErrnoStatus(errno, absl::StrCat("opening ", path));
  const std::int64_t size = file.Size();
  if (size + static_cast<std::int64_t>(text.size()) > limits_.metrics_bytes) {
    return absl::OkStatus();
  }
  return WriteAt(file.get(), text, size, path);
}

absl::StatusOr<std::string> AttemptOutputs::ReadLog(const JobId& job_id, std::int32_t attempt,
                                                    std::int64_t offset,
                                                    std::size_t max_bytes) const {
  Descriptor file(PathOf(job_id, attempt, ".log"), O_RDONLY);
  if (file.get() < 0) return std::string();
  return ReadAt(file.get(), offset, max_bytes);
}

absl::StatusOr<std::pair<std::vector<StepRecord>, std::int64_t>> AttemptOutputs::ReadMetrics(
    const JobId& job_id, std::int32_t attempt, std::int64_t offset, std::size_t max_bytes) const {
  std::pair<std::vector<StepRecord>, std::int64_t> result{{}, offset};
  Descriptor file(PathOf(job_id, attempt, ".metrics"), O_RDONLY);
  if (file.get() < 0) return result;
  const std::string data = ReadAt(file.get(), offset, max_bytes);
  std::size_t begin = 0;
  for (std::size_t end = data.find('\n'); end != std::string::npos; end = data.find('\n', begin)) {
    StepRecord step;
    if (ParseStep(absl::string_view(data).substr(begin, end - begin), &step)) {
      result.first.push_back(step);
    }
    begin = end + 1;
  }
  result.second += static_cast<std::int64_t>(begin);
  return result;
}

std::int64_t AttemptOutputs::LastStep(const JobId& job_id, std::int32_t attempt) const {
  {
    absl::MutexLock lock(&mutex_);
    const auto it = newest_.find({job_id, attempt});
    if (it != newest_.end()) return it->second.first;
  }
  Descriptor file(PathOf(job_id, attempt, ".metrics"), O_RDONLY);
  if (file.get() < 0) return 0;
  const std::int64_t size = file.Size();
  const std::string tail =
      ReadAt(file.get(), std::max<std::int64_t>(0, size - static_cast<std::int64_t>(kTailBytes)),
             kTailBytes);
  std::int64_t last = 0;
  for (absl::string_view line : absl::StrSplit(tail, '\n')) {
    StepRecord step;
    if (ParseStep(line, &step)) last = std::max(last, step.step);
  }
  return last;
}

void AttemptOutputs::Sweep(absl::Time older_than) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(root_, ignored)) {
    struct stat info;
    if (stat(entry.path().c_str(), &info) != 0) continue;
    bool old = absl::TimeFromTimespec(info.st_mtim) <= older_than;
    for (const auto& file : std::filesystem::directory_iterator(entry.path(), ignored)) {
      if (stat(file.path().c_str(), &info) != 0) continue;
      old = old && absl::TimeFromTimespec(info.st_mtim) <= older_than;
    }
    if (old) (void)RemoveTree(entry.path().string());
  }
}

}  // namespace offshoot
