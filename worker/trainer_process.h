// The trainer as the worker sees it: the processes of all ranks of an attempt on this worker.
//
// Two implementations: real processes here, a scripted fake in tests that can hang, lie or die.
// Started through a TrainerLauncher; reports through a TrainerListener from a thread of its own:
// any number of OnTrainerEvent and OnTrainerLog, then exactly one OnTrainerExited, nothing after.
// Destroying it kills what still runs and then makes no further report.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/process.h"
#include "worker/trainer_event.h"

namespace offshoot::worker {

struct TrainerRank {
  std::vector<std::string> arguments;  // after the program; descriptors are added
  std::vector<std::pair<std::string, std::string>> environment;
};

struct TrainerCommand {
  std::string program;
  std::vector<TrainerRank> ranks;  // index = local rank
  std::string log_path;            // stdout and stderr of all ranks, appended
  bool protocol = true;            // false: no --events-fd and --control-fd (verify)
};

struct TrainerExit {
  std::vector<ExitStatus> ranks;
  int first_failed_rank = -1;         // which ended first other than with 0 or 3; -1: none
  bool out_of_memory_killed = false;  // the kernel's OOM killer struck while it ran
  bool terminated = false;            // we ended it
  std::string log_tail;               // last lines of the log, at most kMaxLogTailBytes
};

inline constexpr std::size_t kMaxLogTailBytes = 4 << 10;
inline constexpr std::int64_t kMaxLogFileBytes = 64 << 20;  // an attempt's log is cut there
inline constexpr int kMaxPendingControlLines = 4096;  // contributions of 1024 ranks among them

class TrainerListener {
 public:
  virtual ~TrainerListener() = default;
  virtual void OnTrainerEvent(int rank, const TrainerEvent& event) = 0;
  // offset: bytes from the start of the log file.
  virtual void OnTrainerLog(std::int64_t offset, absl::string_view text) = 0;
  virtual void OnTrainerExited(const TrainerExit& exit) = 0;
};

class TrainerProcess {
 public:
  virtual ~TrainerProcess() = default;
  virtual std::vector<ProcessIdentity> identities() const = 0;
  // One JSON line to every rank; does not block. Lines beyond kMaxPendingControlLines are dropped.
  virtual void SendControl(const std::string& line) = 0;
  // SIGTERM to every rank's group now, SIGKILL after grace; does not block. Repeats may only
  // shorten the grace.
  virtual void Terminate(absl::Duration grace) = 0;
};

class TrainerLauncher {
 public:
  virtual ~TrainerLauncher() = default;
  // listener must outlive the returned object. Either all ranks start or none stays.
  virtual absl::StatusOr<std::unique_ptr<TrainerProcess>> Launch(const TrainerCommand& command,
                                                                 TrainerListener& listener) = 0;
};

// Starts real processes through spawner, which must outlive what is launched. Thread-safe.
// Has this program ignore SIGPIPE: a trainer may die while a control line is written to it.
class RealTrainerLauncher : public TrainerLauncher {
 public:
  explicit RealTrainerLauncher(ProcessSpawner& spawner);
  absl::StatusOr<std::unique_ptr<TrainerProcess>> Launch(const TrainerCommand& command,
                                                         TrainerListener& listener) override;

 private:
  ProcessSpawner& spawner_;
};

}  // namespace offshoot::worker
