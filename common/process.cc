#include "common/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <deque>
#include <functional>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/files.h"

extern char** environ;

namespace offshoot {
namespace {

struct ProcessStat {
  char state = '?';
  unsigned long long start_ticks = 0;
};

std::optional<ProcessStat> ReadProcessStat(pid_t pid) {
  const absl::StatusOr<std::string> text = ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  if (!text.ok()) return std::nullopt;
  // The second field is the program's name in parentheses, and may hold spaces and parentheses.
  const std::size_t end = text->rfind(')');
  if (end == std::string::npos) return std::nullopt;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(*text).substr(end + 1), ' ', absl::SkipEmpty());
  constexpr std::size_t kState = 0;        // field 3
  constexpr std::size_t kStartTicks = 19;  // field 22
  if (fields.size() <= kStartTicks) return std::nullopt;
  ProcessStat stat;
  stat.state = fields[kState][0];
  if (!absl::SimpleAtoi(fields[kStartTicks], &stat.start_ticks)) return std::nullopt;
  return stat;
}

class RealChildProcess : public ChildProcess {
 public:
  RealChildProcess(ProcessIdentity identity, int pidfd)
      : identity_(std::move(identity)), pidfd_(pidfd) {}

  // Nobody could stop the child any more: it goes with its handle.
  ~RealChildProcess() override {
    Terminate(absl::ZeroDuration());
    close(pidfd_);
  }

  ProcessIdentity identity() const override { return identity_; }
  int pidfd() const override { return pidfd_; }

  std::optional<ExitStatus> TryWait() override {
    absl::MutexLock lock(&mutex_);
    return TryWaitLocked();
  }

  std::optional<ExitStatus> Wait(absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    while (true) {
      if (std::optional<ExitStatus> status = TryWait()) return status;
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return std::nullopt;
      pollfd ready{pidfd_, POLLIN, 0};
      const absl::Duration nap = std::min(left, absl::Minutes(1));
      poll(&ready, 1, static_cast<int>(absl::ToInt64Milliseconds(nap)) + 1);
    }
  }

  void Signal(int signal_number) override {
    absl::MutexLock lock(&mutex_);
    // Once reaped, the number may belong to somebody else.
    if (!status_.has_value()) kill(-identity_.pid, signal_number);
  }

  void Terminate(absl::Duration grace) override {
    if (grace > absl::ZeroDuration()) {
      Signal(SIGTERM);
      if (Wait(grace).has_value()) return;
    }
    Signal(SIGKILL);
    Wait(absl::InfiniteDuration());
  }

 private:
  std::optional<ExitStatus> TryWaitLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (status_.has_value()) return status_;
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(identity_.pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0) {
      // ECHILD: somebody else reaped it; how it ended is lost.
      if (errno == ECHILD) status_ = ExitStatus{false, 255};
      return status_;
    }
    if (info.si_pid == 0) return std::nullopt;
    // While the leader is a zombie its group's number cannot be reused: end whoever is left in it.
    kill(-identity_.pid, SIGKILL);
    status_ = ExitStatus{info.si_code != CLD_EXITED, info.si_status};
    waitid(P_PID, static_cast<id_t>(identity_.pid), &info, WEXITED);
    return status_;
  }

  const ProcessIdentity identity_;
  const int pidfd_;
  absl::Mutex mutex_;
  std::optional<ExitStatus> status_ ABSL_GUARDED_BY(mutex_);
};

// Everything the child needs between fork and exec, made before: the child of a threaded process
// must not allocate.
struct PreparedChild {
  std::string program;
  std::vector<std::string> environment;
  std::vector<char*> argument_pointers;
  std::vector<char*> environment_pointers;
  std::string working_directory;
  std::vector<std::pair<int, int>> descriptors;
  std::vector<int> duplicates;  // scratch of the child
  int error_pipe = -1;
  pid_t parent = 0;
};

PreparedChild Prepare(const SpawnOptions& options) {
  PreparedChild child;
  child.program = options.arguments[0];
  for (const std::string& argument : options.arguments) {
    child.argument_pointers.push_back(const_cast<char*>(argument.c_str()));
  }
  child.argument_pointers.push_back(nullptr);
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const absl::string_view text = *variable;
    const absl::string_view name = text.substr(0, text.find('='));
    const bool replaced = std::any_of(options.environment.begin(), options.environment.end(),
                                      [&](const auto& pair) { return pair.first == name; });
    if (!replaced) child.environment.emplace_back(text);
  }
  for (const auto& [name, value] : options.environment) {
    child.environment.push_back(absl::StrCat(name, "=", value));
  }
  for (std::string& variable : child.environment) {
    child.environment_pointers.push_back(variable.data());
  }
  child.environment_pointers.push_back(nullptr);
  child.working_directory = options.working_directory;
  child.descriptors = options.descriptors;
  child.duplicates.resize(options.descriptors.size(), -1);
  child.parent = getpid();
  return child;
}

void MarkCloseOnExecFrom(int first) {
  constexpr unsigned int kCloseRangeCloexec = 1U << 2;
#ifdef SYS_close_range
  if (syscall(SYS_close_range, static_cast<unsigned int>(first), ~0U, kCloseRangeCloexec) == 0) {
    return;
  }
#endif
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const int last = limit.rlim_cur > 65536 ? 65536 : static_cast<int>(limit.rlim_cur);
  for (int descriptor = first; descriptor < last; ++descriptor) {
    fcntl(descriptor, F_SETFD, FD_CLOEXEC);
  }
}

// In the child: only async-signal-safe calls. Returns only on failure, with errno set.
void BecomeProgram(PreparedChild& child) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  // The parent may have died before prctl.
  if (getppid() != child.parent) _exit(127);
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (!child.working_directory.empty() && chdir(child.working_directory.c_str()) != 0) return;

  constexpr int kAboveTargets = 64;  // duplicates stay clear of the numbers asked for
  child.error_pipe = fcntl(child.error_pipe, F_DUPFD_CLOEXEC, kAboveTargets);
  for (std::size_t i = 0; i < child.descriptors.size(); ++i) {
    child.duplicates[i] = fcntl(child.descriptors[i].first, F_DUPFD_CLOEXEC, kAboveTargets);
    if (child.duplicates[i] < 0) return;
  }
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return;
  for (int standard = 0; standard <= 2; ++standard) {
    // dup2 of a descriptor onto itself would leave it close-on-exec.
    if (null == standard) {
      fcntl(null, F_SETFD, 0);
    } else if (dup2(null, standard) < 0) {
      return;
    }
  }
  MarkCloseOnExecFrom(3);
  for (std::size_t i = 0; i < child.descriptors.size(); ++i) {
    if (dup2(child.duplicates[i], child.descriptors[i].second) < 0) return;
  }
  execve(child.program.c_str(), child.argument_pointers.data(), child.environment_pointers.data());
}

absl::StatusOr<std::unique_ptr<ChildProcess>> SpawnOnThisThread(const SpawnOptions& options) {
  if (options.arguments.empty()) {
    return absl::InvalidArgumentError("a program to start was not named");
  }
  for (const auto& [parent, target] : options.descriptors) {
    if (parent < 0 || target < 0 || target >= 64) {
      return absl::InvalidArgumentError(
          absl::StrCat("descriptor ", parent, " cannot become descriptor ", target));
    }
  }
  const std::string& program = options.arguments[0];
  PreparedChild child = Prepare(options);
  int error_pipe[2];
  if (pipe2(error_pipe, O_CLOEXEC) != 0) return ErrnoStatus(errno, "cannot make a pipe");
  child.error_pipe = error_pipe[1];
  const pid_t pid = fork();
  if (pid < 0) {
    const absl::Status status = ErrnoStatus(errno, absl::StrCat("cannot start ", program));
    close(error_pipe[0]);
    close(error_pipe[1]);
    return status;
  }
  if (pid == 0) {
    BecomeProgram(child);
    const int error_number = errno;
    [[maybe_unused]] const ssize_t wrote =
        write(child.error_pipe, &error_number, sizeof(error_number));
    _exit(127);
  }
  setpgid(pid, pid);  // also done by the child; whoever is first
  close(error_pipe[1]);
  int error_number = 0;
  ssize_t got;
  do {
    got = read(error_pipe[0], &error_number, sizeof(error_number));
  } while (got < 0 && errno == EINTR);
  close(error_pipe[0]);
  if (got == static_cast<ssize_t>(sizeof(error_number))) {
    waitpid(pid, nullptr, 0);
    return absl::NotFoundError(absl::StrCat("cannot start ", program, ": ",
                                            ErrnoStatus(error_number, "").message().substr(2)));
  }
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (pidfd < 0) {
    const absl::Status status = ErrnoStatus(errno, absl::StrCat("cannot watch ", program));
    kill(-pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return status;
  }
  ProcessIdentity identity;
  identity.pid = pid;
  identity.boot_id = BootId();
  if (const std::optional<ProcessStat> stat = ReadProcessStat(pid)) {
    identity.start_ticks = stat->start_ticks;
  }
  return std::make_unique<RealChildProcess>(std::move(identity), pidfd);
}

}  // namespace

class ProcessSpawner::Impl {
 public:
  Impl() : thread_([this] { Run(); }) {}

  ~Impl() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  absl::StatusOr<std::unique_ptr<ChildProcess>> Spawn(const SpawnOptions& options) {
    absl::StatusOr<std::unique_ptr<ChildProcess>> result;
    absl::Notification done;
    {
      absl::MutexLock lock(&mutex_);
      requests_.push_back([&] {
        result = SpawnOnThisThread(options);
        done.Notify();
      });
    }
    done.WaitForNotification();
    return result;
  }

 private:
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !requests_.empty();
  }

  void Run() {
    // Signals are for the threads that asked for them.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    while (true) {
      std::function<void()> request;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &Impl::HasWork));
        if (requests_.empty()) return;
        request = std::move(requests_.front());
        requests_.pop_front();
      }
      request();
    }
  }

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::function<void()>> requests_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

ProcessSpawner::ProcessSpawner() : impl_(std::make_unique<Impl>()) {}
ProcessSpawner::~ProcessSpawner() = default;

absl::StatusOr<std::unique_ptr<ChildProcess>> ProcessSpawner::Spawn(const SpawnOptions& options) {
  return impl_->Spawn(options);
}

std::optional<ProcessIdentity> IdentifyProcess(pid_t pid) {
  const std::optional<ProcessStat> stat = ReadProcessStat(pid);
  if (!stat.has_value() || stat->state == 'Z' || stat->state == 'X') return std::nullopt;
  return ProcessIdentity{pid, stat->start_ticks, BootId()};
}

bool ProcessIsAlive(const ProcessIdentity& identity) {
  return identity.pid > 0 && IdentifyProcess(identity.pid) == identity;
}

std::string BootId() {
  const absl::StatusOr<std::string> text = ReadFile("/proc/sys/kernel/random/boot_id");
  return text.ok() ? std::string(absl::StripAsciiWhitespace(*text)) : "";
}

void SignalProcessGroup(const ProcessIdentity& identity, int signal_number) {
  if (ProcessIsAlive(identity)) kill(-identity.pid, signal_number);
}

std::string ProgramDirectory() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  if (length <= 0) return ".";
  const std::string text(path, static_cast<std::size_t>(length));
  return text.substr(0, text.rfind('/'));
}

}  // namespace offshoot
