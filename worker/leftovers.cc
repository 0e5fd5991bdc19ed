#include "worker/leftovers.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "worker/descriptor.h"

namespace offshoot::worker {
namespace {

constexpr absl::Duration kKillWait = absl::Seconds(2);

bool IsMarked(pid_t pid, const std::string& variable) {
  const absl::StatusOr<std::string> text = ReadFile(absl::StrCat("/proc/", pid, "/environ"));
  if (!text.ok() || !absl::StrContains(*text, variable)) return false;
  const std::vector<absl::string_view> variables = absl::StrSplit(*text, '\0');
  return std::find(variables.begin(), variables.end(), variable) != variables.end();
}

// Processes held by pidfd, so that a signal can never reach another that took the number over.
class Targets {
 public:
  void Add(pid_t pid) {
    if (descriptors_.count(pid) > 0) return;
    Descriptor descriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (descriptor.valid()) descriptors_.emplace(pid, std::move(descriptor));
  }

  void Signal(int number) {
    for (const auto& [pid, descriptor] : descriptors_) {
      syscall(SYS_pidfd_send_signal, descriptor.get(), number, nullptr, 0);
    }
  }

  // True when all have ended by then.
  bool WaitUntil(absl::Time deadline) {
    while (!descriptors_.empty()) {
      std::vector<pollfd> waiting;
      for (const auto& [pid, descriptor] : descriptors_) {
        waiting.push_back({descriptor.get(), POLLIN, 0});
      }
      const absl::Duration left = std::max(absl::ZeroDuration(), deadline - absl::Now());
      const int ready =
          poll(waiting.data(), waiting.size(), static_cast<int>(absl::ToInt64Milliseconds(left)));
      if (ready == 0) return false;
      std::size_t index = 0;
      for (auto target = descriptors_.begin(); target != descriptors_.end(); ++index) {
        target = waiting[index].revents != 0 ? descriptors_.erase(target) : std::next(target);
      }
    }
    return true;
  }

  int size() const { return static_cast<int>(descriptors_.size()); }

 private:
  std::map<pid_t, Descriptor> descriptors_;
};

}  // namespace

std::vector<pid_t> FindMarkedProcesses(const std::string& mark) {
  std::vector<pid_t> found;
  const std::string variable = absl::StrCat(kAttemptMark, "=", mark);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &pid) || pid == getpid()) continue;
    if (IsMarked(pid, variable)) found.push_back(pid);
  }
  return found;
}

int EndLeftovers(const std::string& mark, const std::vector<ProcessIdentity>& processes,
                 absl::Duration grace) {
  Targets targets;
  for (const pid_t pid : FindMarkedProcesses(mark)) targets.Add(pid);
  for (const ProcessIdentity& process : processes) {
    if (!ProcessIsAlive(process)) continue;
    targets.Add(process.pid);
    if (grace > absl::ZeroDuration()) SignalProcessGroup(process, SIGTERM);
  }
  const int found = targets.size();
  if (grace > absl::ZeroDuration()) {
    targets.Signal(SIGTERM);
    targets.WaitUntil(absl::Now() + grace);
  }
  for (const ProcessIdentity& process : processes) SignalProcessGroup(process, SIGKILL);
  // Those found first may have started others meanwhile.
  for (const pid_t pid : FindMarkedProcesses(mark)) targets.Add(pid);
  targets.Signal(SIGKILL);
  targets.WaitUntil(absl::Now() + kKillWait);
  return std::max(found, targets.size());
}

}  // namespace offshoot::worker
