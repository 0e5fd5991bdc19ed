#include "trainer/events.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::size_t kMaxControlLineBytes = 64 * 1024;
constexpr unsigned kHardExitSeconds = 5;
constexpr std::chrono::milliseconds kSignalPollInterval{100};

volatile sig_atomic_t termination_requested = 0;

void OnTermination(int) {
  termination_requested = 1;
  alarm(kHardExitSeconds);
}

void OnHardExit(int) { _exit(128 + SIGTERM); }

double UnixSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

nlohmann::json EncodeNumber(double value) {
  if (std::isnan(value)) {
    return "nan";
  }
  if (std::isinf(value)) {
    return value > 0 ? "inf" : "-inf";
  }
  return value;
}

EventWriter::EventWriter(int descriptor) : descriptor_(descriptor) {
  if (descriptor_ >= 0) {
    thread_ = std::thread([this] { WriteLoop(); });
  }
}

EventWriter::~EventWriter() {
  if (!thread_.joinable()) {
    return;
  }
  Flush(2000);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  abandon_.store(true);
  changed_.notify_all();
  thread_.join();
}

void EventWriter::Emit(const std::string& event, nlohmann::json fields) {
  Push(event, std::move(fields), /*may_drop=*/false);
}

void EventWriter::EmitMetrics(nlohmann::json fields) {
  Push("metrics", std::move(fields), /*may_drop=*/true);
}

void EventWriter::EmitActivity(nlohmann::json fields) {
  Push("activity", std::move(fields), /*may_drop=*/true);
}

void EventWriter::Push(const std::string& event, nlohmann::json fields, bool may_drop) {
  if (descriptor_ < 0) {
    return;
  }
  fields["event"] = event;
  fields["time"] = UnixSeconds();
  // Text of a model or of a file name may be cut inside a character: replace, never throw.
  std::string line = fields.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::unique_lock<std::mutex> lock(mutex_);
  if (may_drop && queue_.size() >= kQueueLimit) {
    dropped_.fetch_add(1);
    return;
  }
  changed_.wait(lock, [this] { return queue_.size() < kQueueLimit || broken_ || closing_; });
  if (broken_ || closing_) {
    return;
  }
  queue_.push_back(std::move(line));
  changed_.notify_all();
}

bool EventWriter::Flush(std::int64_t timeout_ms) {
  if (descriptor_ < 0) {
    return true;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                    [this] { return (queue_.empty() && !writing_) || broken_; });
  return queue_.empty() && !writing_ && !broken_;
}

void EventWriter::WriteLoop() {
  while (true) {
    std::string line;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !queue_.empty() || closing_; });
      if (closing_ || queue_.empty()) {
        return;
      }
      line = std::move(queue_.front());
      queue_.pop_front();
      writing_ = true;
      changed_.notify_all();
    }
    const bool written = WriteLine(line);
    const std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    if (!written) {
      broken_ = true;
      queue_.clear();
    }
    changed_.notify_all();
    if (!written) {
      return;
    }
  }
}

// Pieces of at most PIPE_BUF bytes after poll: a pipe that is ready takes one without blocking, so
// a stuck reader can always be abandoned.
bool EventWriter::WriteLine(const std::string& line) {
  constexpr std::size_t kPiece = 4096;
  std::size_t done = 0;
  while (done < line.size()) {
    struct pollfd ready = {descriptor_, POLLOUT, 0};
    const int count = poll(&ready, 1, 100);
    if (abandon_.load()) {
      return false;
    }
    if (count == 0 || (count < 0 && errno == EINTR)) {
      continue;
    }
    if (count < 0 || (ready.revents & (POLLERR | POLLNVAL)) != 0) {
      return false;
    }
    const ssize_t written =
        write(descriptor_, line.data() + done, std::min(kPiece, line.size() - done));
    if (written < 0) {
      if (errno == EINTR || errno == EAGAIN) {
        continue;
      }
      return false;
    }
    done += static_cast<std::size_t>(written);
  }
  return true;
}

RunControl::RunControl(int descriptor) : descriptor_(descriptor) {
  if (descriptor_ >= 0) {
    wake_descriptor_ = eventfd(0, EFD_CLOEXEC);
    thread_ = std::thread([this] { ReadLoop(); });
  }
}

RunControl::~RunControl() {
  if (!thread_.joinable()) {
    return;
  }
  const std::uint64_t one = 1;
  while (write(wake_descriptor_, &one, sizeof(one)) < 0 && errno == EINTR) {
  }
  thread_.join();
  close(wake_descriptor_);
}

StopRequest RunControl::stop_request() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stop_ == StopRequest::kNone && TerminationRequested()) {
    return StopRequest::kStop;
  }
  return stop_;
}

void RunControl::RequestStop(StopRequest request) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (stop_ != StopRequest::kStopWithoutCheckpoint) {
    stop_ = request;
  }
  changed_.notify_all();
}

bool RunControl::TakeCheckpointRequest() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(checkpoint_requested_, false);
}

bool RunControl::WaitUntilStored(std::int64_t step) {
  if (!has_control_line()) {
    return true;
  }
  std::unique_lock<std::mutex> lock(mutex_);
  // A signal handler cannot notify: look at its flag now and then.
  while (stored_step_ < step && stop_ == StopRequest::kNone && !TerminationRequested()) {
    changed_.wait_for(lock, kSignalPollInterval);
  }
  return stored_step_ >= step;
}

std::string RunControl::WaitForContribution(std::int64_t round, std::int64_t rank) {
  std::unique_lock<std::mutex> lock(mutex_);
  contributions_.erase(contributions_.begin(), contributions_.lower_bound({round, 0}));
  while (true) {
    const auto found = contributions_.find({round, rank});
    if (found != contributions_.end()) return found->second;
    if (!has_control_line() || line_ended_ || TerminationRequested()) return "";
    changed_.wait_for(lock, kSignalPollInterval);
  }
}

void RunControl::TakeContribution(const nlohmann::json& message) {
  const auto round = message.find("round");
  const auto rank = message.find("rank");
  const auto path = message.find("path");
  if (round == message.end() || !round->is_number_integer() || rank == message.end() ||
      !rank->is_number_integer() || path == message.end() || !path->is_string()) {
    std::fprintf(stderr, "ignored a contribution without round, rank or path\n");
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  contributions_[{round->get<std::int64_t>(), rank->get<std::int64_t>()}] = *path;
}

void RunControl::ReadLoop() {
  std::string pending;
  char buffer[4096];
  while (true) {
    struct pollfd ready[2] = {{descriptor_, POLLIN, 0}, {wake_descriptor_, POLLIN, 0}};
    if (poll(ready, 2, -1) < 0) {
      if (errno == EINTR) {
        continue;
      }
      break;
    }
    if (ready[1].revents != 0) {
      return;
    }
    const ssize_t count = read(descriptor_, buffer, sizeof(buffer));
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) {
      continue;
    }
    if (count <= 0) {
      break;
    }
    pending.append(buffer, static_cast<std::size_t>(count));
    std::size_t begin = 0;
    for (std::size_t end = pending.find('\n'); end != std::string::npos;
         end = pending.find('\n', begin)) {
      HandleLine(pending.substr(begin, end - begin));
      begin = end + 1;
    }
    pending.erase(0, begin);
    if (pending.size() > kMaxControlLineBytes) {
      std::fprintf(stderr, "control line longer than %zu bytes; taken as the end of the line\n",
                   kMaxControlLineBytes);
      break;
    }
  }
  std::fprintf(stderr, "the control line ended: the worker is gone; stopping\n");
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    line_ended_ = true;
  }
  RequestStop(StopRequest::kStop);
}

void RunControl::HandleLine(const std::string& line) {
  const nlohmann::json message = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!message.is_object() || !message.contains("command") || !message["command"].is_string()) {
    std::fprintf(stderr, "ignored a control line that is no {\"command\": ...} object\n");
    return;
  }
  const std::string command = message["command"];
  if (command == "checkpoint") {
    const std::lock_guard<std::mutex> lock(mutex_);
    checkpoint_requested_ = true;
  } else if (command == "stop") {
    const auto found = message.find("checkpoint");
    const bool checkpoint = found == message.end() || !found->is_boolean() || found->get<bool>();
    RequestStop(checkpoint ? StopRequest::kStop : StopRequest::kStopWithoutCheckpoint);
  } else if (command == "checkpoint_stored") {
    const auto found = message.find("step");
    if (found != message.end() && found->is_number_integer()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      stored_step_ = std::max(stored_step_, found->get<std::int64_t>());
    }
  } else if (command == "contribution") {
    TakeContribution(message);
  } else {
    std::fprintf(stderr, "ignored the unknown control command '%.100s'\n", command.c_str());
  }
  changed_.notify_all();
}

void InstallProcessGuards(int events_descriptor, int control_descriptor) {
  for (const int descriptor : {events_descriptor, control_descriptor}) {
    if (descriptor < 0) {
      continue;
    }
    const int flags = fcntl(descriptor, F_GETFD);
    if (flags < 0) {
      throw Error(Reason::kBadSpec,
                  "descriptor " + std::to_string(descriptor) +
                      " is not open; --events-fd and --control-fd take descriptors that the "
                      "starting process has opened.");
    }
    // A sibling that inherits the pipe's other end would keep it open after the worker's death.
    fcntl(descriptor, F_SETFD, flags | FD_CLOEXEC);
  }
  struct sigaction action;
  std::memset(&action, 0, sizeof(action));
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
  sigaction(SIGXFSZ, &action, nullptr);  // a file-size limit is a failed write, not the end
  action.sa_handler = OnHardExit;
  sigaction(SIGALRM, &action, nullptr);
  action.sa_handler = OnTermination;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  if (events_descriptor >= 0 || control_descriptor >= 0) {
    const pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) {  // it died before the signal was asked for
      raise(SIGTERM);
    }
  }
}

bool TerminationRequested() { return termination_requested != 0; }

}  // namespace offshoot::trainer
