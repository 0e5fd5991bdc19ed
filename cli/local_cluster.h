// A coordinator and workers on this machine, as children: what `offshoot run` stands on.
//
//   state/coordinator, state/worker-1, ...   their state directories
//   state/coordinator.log, ...               their logs
//   state/run.lock                           one run at a time
//
// A child that dies is started again, a bounded number of times; all of them end with this object,
// and, by the kernel's parent-death signal, with this process however it ends. The coordinator
// keeps its port for as long as the object lives. Thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/files.h"
#include "common/process.h"

namespace offshoot::cli {

struct LocalClusterOptions {
  std::string state_directory;
  std::string program_directory;  // where offshoot-coordinator and offshoot-worker lie
  int workers = 1;
  std::string devices;  // as --devices of the worker has it; shared out among several workers
  absl::Duration start_timeout = absl::Seconds(30);
  int max_restarts = 20;  // of all children together
};

class LocalCluster {
 public:
  // Returns as soon as the coordinator listens; the workers are started by then.
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(const LocalClusterOptions& options);
  ~LocalCluster();  // stops it

  const std::string& address() const { return address_; }
  // Not OK once a child died too often, or at once from wrong use; names it and its last log lines.
  absl::Status failure();
  // SIGTERM to all, SIGKILL after grace.
  void Stop(absl::Duration grace);

 private:
  struct Child {
    std::string name;  // coordinator, worker-1
    std::string log_path;
    std::vector<std::string> arguments;
    std::unique_ptr<ChildProcess> process;
    std::optional<absl::Time> restart_at;
    int deaths = 0;
  };

  LocalCluster(LocalClusterOptions options, FileLock lock);
  absl::Status StartCoordinator();
  absl::Status StartWorkers();
  absl::Status Launch(Child& child);
  void Supervise();
  // One look at every child; gives when the next is due.
  absl::Duration LookAfterChildren() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Explain(const Child& child, const std::string& what) const;

  const LocalClusterOptions options_;
  const FileLock lock_;
  ProcessSpawner spawner_;
  std::string address_;
  int wake_descriptor_ = -1;
  absl::Mutex mutex_;
  std::vector<Child> children_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  int restarts_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread supervisor_;
};

// Parts "cpu:0@1,cpu:1@1" among workers, in order; INVALID_ARGUMENT when there are fewer devices
// than workers. Without devices, several workers share out the processor's cores.
absl::StatusOr<std::vector<std::string>> ShareOutDevices(const std::string& devices, int workers,
                                                         int cores);

}  // namespace offshoot::cli
