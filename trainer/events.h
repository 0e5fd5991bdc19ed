// The trainer's two lines to whoever started it: events out, commands in
// (docs/trainer-protocol.md).
//
//   job loop --Emit--> bounded queue --writer thread--> --events-fd
//   --control-fd --reader thread--> RunControl (flags) <--polled-- job loop
//   SIGTERM ------------------------^
//
// EventWriter and RunControl are thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>

namespace offshoot::trainer {

// JSON has no NaN: a number as it is, or "nan", "inf", "-inf".
nlohmann::json EncodeNumber(double value);

class EventWriter {
 public:
  // At most this many events wait; metrics beyond it are dropped, other events wait for room.
  static constexpr std::size_t kQueueLimit = 1024;

  // descriptor -1: events go nowhere. The descriptor stays the caller's.
  explicit EventWriter(int descriptor);
  // Writes what is left, for at most 2 s.
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  // Adds "event" and "time" to the fields. A state event: never dropped while there is a reader.
  void Emit(const std::string& event, nlohmann::json fields);
  // May be dropped when the reader is slow.
  void EmitMetrics(nlohmann::json fields);
  // As EmitMetrics.
  void EmitActivity(nlohmann::json fields);
  // Waits until everything is written, the reader is gone, or the time is over; true if all is out.
  bool Flush(std::int64_t timeout_ms);
  std::int64_t dropped() const { return dropped_.load(); }

 private:
  void Push(const std::string& event, nlohmann::json fields, bool may_drop);
  void WriteLoop();
  bool WriteLine(const std::string& line);

  const int descriptor_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> queue_;  // under mutex_
  bool writing_ = false;           // under mutex_
  bool broken_ = false;            // under mutex_: the reader is gone
  bool closing_ = false;           // under mutex_
  std::atomic<bool> abandon_{false};
  std::atomic<std::int64_t> dropped_{0};
  std::thread thread_;
};

enum class StopRequest { kNone, kStop, kStopWithoutCheckpoint };

// What was asked of the running job. The loop polls it between micro-batches.
class RunControl {
 public:
  // descriptor -1: no control line; checkpoints then need no confirmation.
  explicit RunControl(int descriptor);
  ~RunControl();
  RunControl(const RunControl&) = delete;
  RunControl& operator=(const RunControl&) = delete;

  bool has_control_line() const { return descriptor_ >= 0; }
  // Why and how to stop; the end of the control line and SIGTERM are kStop.
  StopRequest stop_request() const;
  void RequestStop(StopRequest request);
  // True once per {"command": "checkpoint"}.
  bool TakeCheckpointRequest();
  // Waits until {"command": "checkpoint_stored"} came for this step or a later one, or a stop was
  // requested. True if stored. Returns true at once without a control line.
  bool WaitUntilStored(std::int64_t step);
  // Waits until {"command": "contribution"} came with that rank's file of the round; its path.
  // Empty: the control line ended or the process is asked to end. Those of earlier rounds are
  // forgotten.
  std::string WaitForContribution(std::int64_t round, std::int64_t rank);

 private:
  void TakeContribution(const nlohmann::json& message);
  void ReadLoop();
  void HandleLine(const std::string& line);

  const int descriptor_;
  int wake_descriptor_ = -1;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  StopRequest stop_ = StopRequest::kNone;                                       // under mutex_
  bool checkpoint_requested_ = false;                                           // under mutex_
  std::int64_t stored_step_ = -1;                                               // under mutex_
  bool line_ended_ = false;                                                     // under mutex_
  std::map<std::pair<std::int64_t, std::int64_t>, std::string> contributions_;  // under mutex_
  std::thread thread_;
};

// Process-wide set-up, once, from main: SIGPIPE ignored; SIGTERM and SIGINT ask for a stop and end
// the process hard 5 s later; if the process was started by a worker (it has an events or control
// line) it gets SIGTERM when that parent dies. Marks both descriptors close-on-exec; throws
// Error(kBadSpec) for a descriptor that is not open.
void InstallProcessGuards(int events_descriptor, int control_descriptor);
// True after SIGTERM or SIGINT.
bool TerminationRequested();

}  // namespace offshoot::trainer
