#include "cli/local_cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace offshoot::cli {
namespace {

constexpr absl::Duration kAddressLook = absl::Milliseconds(3);
constexpr absl::Duration kFirstRestart = absl::Milliseconds(50);
constexpr absl::Duration kLongestRestart = absl::Seconds(2);
constexpr int kWrongUseExit = 2;
constexpr std::size_t kLogTailLines = 8;

std::string LogTail(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return "";
  std::vector<std::string> lines = absl::StrSplit(*text, '\n', absl::SkipEmpty());
  if (lines.size() > kLogTailLines) lines.erase(lines.begin(), lines.end() - kLogTailLines);
  return absl::StrJoin(lines, "\n  ");
}

std::string HowItEnded(const ExitStatus& status) {
  if (!status.signalled) return absl::StrCat("ended with exit code ", status.code);
  return absl::StrCat("was killed by signal ", status.code, " (", strsignal(status.code), ")");
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ShareOutDevices(const std::string& devices, int workers,
                                                         int cores) {
  if (workers == 1) return std::vector<std::string>{devices};
  std::vector<std::string> all = absl::StrSplit(devices, ',', absl::SkipEmpty());
  if (all.empty()) {
    const int threads = std::max(1, cores / workers);
    return std::vector<std::string>(workers, absl::StrCat("cpu:0@", threads));
  }
  if (all.size() < static_cast<std::size_t>(workers)) {
    return absl::InvalidArgumentError(absl::StrCat("--devices names ", all.size(), " devices for ",
                                                   workers,
                                                   " workers; name at least one for each"));
  }
  std::vector<std::string> shares;
  for (int i = 0; i < workers; ++i) {
    const std::size_t from = all.size() * i / workers;
    const std::size_t to = all.size() * (i + 1) / workers;
    shares.push_back(absl::StrJoin(all.begin() + from, all.begin() + to, ","));
  }
  return shares;
}

LocalCluster::LocalCluster(LocalClusterOptions options, FileLock lock)
    : options_(std::move(options)),
      lock_(std::move(lock)),
      wake_descriptor_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(
    const LocalClusterOptions& options) {
  RETURN_IF_ERROR(MakeDirectories(options.state_directory));
  auto lock = FileLock::Acquire(JoinPath(options.state_directory, "run.lock"));
  if (lock.status().code() == absl::StatusCode::kFailedPrecondition) {
    return absl::FailedPreconditionError(
        absl::StrCat("another `offshoot run` uses ", options.state_directory,
                     "; wait for it, or name another directory with --state-dir"));
  }
  if (!lock.ok()) return lock.status();
  std::unique_ptr<LocalCluster> cluster(new LocalCluster(options, *std::move(lock)));
  RETURN_IF_ERROR(cluster->StartCoordinator());
  RETURN_IF_ERROR(cluster->StartWorkers());
  cluster->supervisor_ = std::thread([raw = cluster.get()] { raw->Supervise(); });
  return cluster;
}

LocalCluster::~LocalCluster() {
  Stop(absl::Seconds(5));
  close(wake_descriptor_);
}

absl::Status LocalCluster::StartCoordinator() {
  const std::string state = JoinPath(options_.state_directory, "coordinator");
  const std::string address_file = JoinPath(options_.state_directory, "coordinator.address");
  RETURN_IF_ERROR(MakeDirectories(state));
  RETURN_IF_ERROR(RemoveTree(address_file));  // an earlier run's
  const auto arguments = [&](const std::string& listen) -> std::vector<std::string> {
    return {JoinPath(options_.program_directory, "offshoot-coordinator"),
            "--listen",
            listen,
            "--state-dir",
            state,
            "--address-file",
            address_file,
            "--allowed-root",
            "/"};
  };
  absl::MutexLock lock(&mutex_);
  Child child;
  child.name = "coordinator";
  child.log_path = JoinPath(options_.state_directory, "coordinator.log");
  child.arguments = arguments("127.0.0.1:0");
  RETURN_IF_ERROR(Launch(child));
  const absl::Time deadline = absl::Now() + options_.start_timeout;
  while (true) {
    const absl::StatusOr<std::string> text = ReadFile(address_file);
    if (text.ok() && !text->empty()) {
      address_ = std::string(absl::StripAsciiWhitespace(*text));
      break;
    }
    if (const auto ended = child.process->Wait(kAddressLook)) {
      return Explain(child, HowItEnded(*ended));
    }
    if (absl::Now() > deadline) {
      return Explain(child, absl::StrCat("did not listen within ",
                                         absl::FormatDuration(options_.start_timeout)));
    }
  }
  // Started again, it is where the workers and we look for it.
  child.arguments = arguments(address_);
  children_.push_back(std::move(child));
  return absl::OkStatus();
}

absl::Status LocalCluster::StartWorkers() {
  ASSIGN_OR_RETURN(const std::vector<std::string> shares,
                   ShareOutDevices(options_.devices, options_.workers,
                                   static_cast<int>(std::thread::hardware_concurrency())));
  absl::MutexLock lock(&mutex_);
  for (int i = 0; i < options_.workers; ++i) {
    Child child;
    child.name = absl::StrCat("worker-", i + 1);
    child.log_path = JoinPath(options_.state_directory, child.name + ".log");
    const std::string state = JoinPath(options_.state_directory, child.name);
    RETURN_IF_ERROR(MakeDirectories(state));
    child.arguments = {JoinPath(options_.program_directory, "offshoot-worker"),
                       "--coordinator",
                       address_,
                       "--state-dir",
                       state,
                       "--name",
                       child.name};
    if (!shares[i].empty()) {
      child.arguments.insert(child.arguments.end(), {"--devices", shares[i]});
    }
    RETURN_IF_ERROR(Launch(child));
    children_.push_back(std::move(child));
  }
  return absl::OkStatus();
}

absl::Status LocalCluster::Launch(Child& child) {
  const int log = open(child.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0) return ErrnoStatus(errno, absl::StrCat("cannot open ", child.log_path));
  SpawnOptions options;
  options.arguments = child.arguments;
  options.descriptors = {{log, 1}, {log, 2}};
  absl::StatusOr<std::unique_ptr<ChildProcess>> process = spawner_.Spawn(options);
  close(log);
  if (!process.ok()) return process.status();
  child.process = *std::move(process);
  child.restart_at.reset();
  return absl::OkStatus();
}

absl::Status LocalCluster::Explain(const Child& child, const std::string& what) const {
  const std::string tail = LogTail(child.log_path);
  return absl::InternalError(
      absl::StrCat("the ", child.name, " ", what, "; its log is ", child.log_path,
                   tail.empty() ? "" : absl::StrCat(" and ends with\n  ", tail)));
}

absl::Duration LocalCluster::LookAfterChildren() {
  absl::Duration next = absl::Seconds(60);
  for (Child& child : children_) {
    if (child.process != nullptr) {
      const std::optional<ExitStatus> ended = child.process->TryWait();
      if (!ended.has_value()) continue;
      child.process.reset();
      const bool wrong_use = !ended->signalled && ended->code == kWrongUseExit;
      if (wrong_use || ++restarts_ > options_.max_restarts) {
        failure_ = Explain(child, HowItEnded(*ended));
        continue;
      }
      // The first time at once: a kill is one event, a crash at every start is many.
      absl::Duration wait = kFirstRestart;
      for (int i = 0; i < std::min(child.deaths, 10); ++i) wait *= 2;
      if (child.deaths++ == 0) wait = absl::ZeroDuration();
      child.restart_at = absl::Now() + std::min(wait, kLongestRestart);
    }
    if (!child.restart_at.has_value() || !failure_.ok()) continue;
    const absl::Duration left = *child.restart_at - absl::Now();
    if (left > absl::ZeroDuration()) {
      next = std::min(next, left);
      continue;
    }
    if (const absl::Status launched = Launch(child); !launched.ok()) failure_ = launched;
  }
  return next;
}

void LocalCluster::Supervise() {
  while (true) {
    std::vector<pollfd> watched{{wake_descriptor_, POLLIN, 0}};
    absl::Duration next;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
      next = LookAfterChildren();
      for (const Child& child : children_) {
        if (child.process != nullptr) watched.push_back({child.process->pidfd(), POLLIN, 0});
      }
    }
    poll(watched.data(), watched.size(), static_cast<int>(absl::ToInt64Milliseconds(next)) + 1);
  }
}

absl::Status LocalCluster::failure() {
  absl::MutexLock lock(&mutex_);
  return failure_;
}

void LocalCluster::Stop(absl::Duration grace) {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t wrote = write(wake_descriptor_, &one, sizeof(one));
  if (supervisor_.joinable()) supervisor_.join();
  absl::MutexLock lock(&mutex_);
  const absl::Time deadline = absl::Now() + grace;
  // Workers first: they still have something to tell the coordinator.
  for (std::size_t i = children_.size(); i-- > 0;) {
    if (children_[i].process != nullptr && i > 0) children_[i].process->Signal(SIGTERM);
  }
  for (std::size_t i = children_.size(); i-- > 0;) {
    Child& child = children_[i];
    if (child.process == nullptr) continue;
    child.process->Terminate(std::max(deadline - absl::Now(), absl::Milliseconds(100)));
    child.process.reset();
  }
}

}  // namespace offshoot::cli
