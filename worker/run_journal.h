// What the worker must still know after it died: its attempts, their processes and their events.
//
// One directory an attempt below ROOT (state-dir/attempts):
//   ROOT/job-x.3/assignment.pb   what was asked for
//   ROOT/job-x.3/processes.json  who runs for it: pid, start ticks, boot id
//   ROOT/job-x.3/events.log      records: 'E' event or 'A' acknowledged sequence, each with length
//                                and checksum; a torn tail (a crash while writing) is cut off
//   ROOT/job-x.3/work/           the trainer's work directory
//   ROOT/job-x.3/trainer.log
// Events are synced before AppendEvent returns. Assignments and processes are not: they only
// matter to a worker restarted on a machine that kept running, which still has them in memory.
// One thread at a time for each attempt; different attempts may be used at once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/process.h"
#include "offshoot/v1/cluster.pb.h"
#include "worker/attempt_machine.h"

namespace offshoot::worker {

class RunJournal {
 public:
  // Makes root when it is not there.
  static absl::StatusOr<std::unique_ptr<RunJournal>> Open(const std::string& root);

  struct Entry {
    RecoveredAttempt attempt;
    std::vector<ProcessIdentity> processes;
  };
  // Every attempt on disk. Directories without a readable assignment are removed.
  absl::StatusOr<std::vector<Entry>> Load();

  absl::Status Begin(const AttemptKey& key, const v1::Assignment& assignment);
  absl::Status RecordProcesses(const AttemptKey& key,
                               const std::vector<ProcessIdentity>& processes);
  absl::Status AppendEvent(const AttemptKey& key, const v1::AttemptEvent& event);
  absl::Status RecordAck(const AttemptKey& key, std::int64_t sequence);
  absl::Status Remove(const AttemptKey& key);

  std::string Directory(const AttemptKey& key) const;
  std::string WorkDirectory(const AttemptKey& key) const;

 private:
  explicit RunJournal(std::string root) : root_(std::move(root)) {}

  const std::string root_;
};

}  // namespace offshoot::worker
