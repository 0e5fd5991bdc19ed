// Child processes that do not outlive their parent.
//
// Linux's parent-death signal fires when the *thread* that forked ends, so every child is spawned
// by one thread that lives as long as the ProcessSpawner. Children get a process group of their
// own, SIGTERM when the spawner's process dies, an empty stdin, and only the descriptors named
// here.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace offshoot {

struct SpawnOptions {
  std::vector<std::string> arguments;  // arguments[0] is the program's path
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours
  std::string working_directory;                                 // empty: ours
  // Parent descriptor -> child descriptor number. stdout/stderr are 1 and 2; unnamed ones are
  // closed.
  std::vector<std::pair<int, int>> descriptors;
};

// Names a process for longer than its pid lives.
struct ProcessIdentity {
  pid_t pid = 0;
  unsigned long long start_ticks = 0;  // field 22 of /proc/PID/stat
  std::string boot_id;
  bool operator==(const ProcessIdentity&) const = default;
};

struct ExitStatus {
  bool signalled = false;
  int code = 0;  // exit code, or the signal's number
};

class ChildProcess {
 public:
  virtual ~ChildProcess() = default;
  virtual ProcessIdentity identity() const = 0;
  // Readable when the child has ended (pidfd), for poll.
  virtual int pidfd() const = 0;
  virtual std::optional<ExitStatus> TryWait() = 0;
  virtual std::optional<ExitStatus> Wait(absl::Duration timeout) = 0;
  // To the whole process group.
  virtual void Signal(int signal_number) = 0;
  // SIGTERM to the group, SIGKILL after grace, reaped.
  virtual void Terminate(absl::Duration grace) = 0;
};

class ProcessSpawner {
 public:
  ProcessSpawner();   // starts the spawning thread
  ~ProcessSpawner();  // children still running get SIGTERM from the kernel
  // NOT_FOUND if the program is not there or not executable. Thread-safe.
  absl::StatusOr<std::unique_ptr<ChildProcess>> Spawn(const SpawnOptions& options);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// nullopt when no such process runs.
std::optional<ProcessIdentity> IdentifyProcess(pid_t pid);
bool ProcessIsAlive(const ProcessIdentity& identity);
std::string BootId();
// Signals the group of a process that may not be our child, only if it still is the same process.
void SignalProcessGroup(const ProcessIdentity& identity, int signal_number);

// The directory of the running program, to find its sister programs.
std::string ProgramDirectory();

}  // namespace offshoot
