// A job's events as they come, over as many connections as it takes.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "cli/context.h"
#include "offshoot/v1/jobs.pb.h"

namespace offshoot::cli {

// Reads on a thread of its own; a lost connection is made again from the next event on. Not
// thread-safe.
class JobEvents {
 public:
  JobEvents(Client& client, std::string job_id, std::int64_t from_sequence);
  ~JobEvents();  // ends the stream

  // The next event; nullopt after the timeout or at the end.
  std::optional<v1::JobEvent> Next(absl::Duration timeout);
  // All events are taken and none will come. status() says why.
  bool ended();
  absl::Status status();

 private:
  void Read();
  bool HasNews() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return ended_ || !events_.empty(); }

  // A reader that is not asked for so many events waits.
  static constexpr std::size_t kMaxWaiting = 1024;

  Client& client_;
  const std::string job_id_;
  absl::Mutex mutex_;
  std::int64_t next_sequence_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::JobEvent> events_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::thread reader_;
};

// Events as lines, and below them, on a terminal, one line that is written over.
class ProgressDisplay {
 public:
  explicit ProgressDisplay(const Context& context) : context_(context) {}
  ~ProgressDisplay() { Clear(); }
  void Event(const v1::JobEvent& event);
  // Only on a terminal, and only when the line changed.
  void Progress(const v1::Job& job);
  void Clear();

 private:
  const Context& context_;
  std::string line_;
};

// Shows the job until it is terminal. Gives the exit code: 0 when it succeeded, 1 when not.
int FollowJob(const Context& context, Client& client, const std::string& job_id,
              std::int64_t from_sequence);
// One line on how it ended; for a failed job the reason, the culprit and the last log lines.
void PrintOutcome(std::ostream& out, const v1::Job& job);

}  // namespace offshoot::cli
