// The worker's mind: which attempts it holds, what it says to the coordinator and when.
//
// Pure: no thread, socket, disk or clock. Every input takes the time and returns effects, which
// the caller carries out in order; so a simulation can run many agents under a fake clock and a
// fake network. Not thread-safe.
//
//   away ──Connect──▶ connecting ──Welcome──▶ welcomed ──stream ends──▶ away (backoff, jitter)
//
// State events are made durable (PersistEvent) before they are sent, are sent again after every
// Welcome until acknowledged, in order, and leave only when the coordinator has them. Output
// (logs, metrics) is kept in a bounded buffer while away and dropped oldest first.
// A trainer is started only when the one before it on the same device has ended: a fenced attempt
// may still be ending when the coordinator gives its devices away.
// A coordinator away for longer than its unreachable grace: attempts checkpoint and stop; safety
// never rests on this, but on fencing.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/retry.h"
#include "offshoot/v1/cluster.pb.h"
#include "worker/attempt_machine.h"

namespace offshoot::worker {

inline constexpr int kProtocolVersion = 1;

struct Connect {};     // open a session; its first message is the next SendMessage
struct Disconnect {};  // give the session up
struct SendMessage {
  v1::WorkerMessage message;
};
struct BeginAttempt {  // make its directory and its record
  AttemptKey key;
  v1::Assignment assignment;
};
struct PersistEvent {
  AttemptKey key;
  v1::AttemptEvent event;
};
struct RecordAck {
  AttemptKey key;
  std::int64_t sequence = 0;
};
struct RunAction {  // an action of one attempt other than EmitEvent, SendOutput and Forget
  AttemptKey key;
  AttemptAction action;
};
struct ForgetAttempt {
  AttemptKey key;
};
struct LeaveNow {  // nothing runs any more: end the program
  absl::Status reason;
};

using AgentEffect = std::variant<Connect, Disconnect, SendMessage, BeginAttempt, PersistEvent,
                                 RecordAck, RunAction, ForgetAttempt, LeaveNow>;
using AgentEffects = std::vector<AgentEffect>;

struct AgentOptions {
  std::string worker_id;
  std::string incarnation_id;
  std::string name;
  std::string version;
  std::string address;  // where ranks on other workers reach ours; empty: not at all
  v1::Inventory inventory;
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> taints;
  BackoffOptions reconnect{.first = absl::Milliseconds(50), .largest = absl::Seconds(5)};
  absl::Duration welcome_timeout = absl::Seconds(20);
  absl::Duration heartbeat_interval = absl::Seconds(5);  // until the Welcome says otherwise
  absl::Duration unreachable_grace = absl::Minutes(10);  // until the Welcome says otherwise
  absl::Duration leave_timeout = absl::Seconds(60);
  std::size_t max_attempts = 256;                   // held at once, preflights included
  std::size_t max_buffered_output_bytes = 4 << 20;  // while away
  AttemptLimits limits;
};

class Agent {
 public:
  // random: uniform in [0, 1), for jitter.
  Agent(AgentOptions options, std::function<double()> random);

  AgentEffects Start(const std::vector<RecoveredAttempt>& recovered, absl::Time now);
  AgentEffects OnMessage(const v1::CoordinatorMessage& message, absl::Time now);
  AgentEffects OnDisconnected(const absl::Status& status, absl::Time now);
  AgentEffects OnAttempt(const AttemptKey& key, const AttemptInput& input, absl::Time now);
  AgentEffects OnLog(const AttemptKey& key, std::int64_t offset, absl::string_view text,
                     absl::Time now);
  AgentEffects OnTick(absl::Time now);
  // Checkpoint and stop what runs, deliver, then LeaveNow; at the latest after leave_timeout.
  AgentEffects Leave(absl::Time now);
  // As measured, TFLOP/s: told with the next heartbeat, and at every registration.
  void SetDeviceSpeed(const std::string& device_id, double speed);
  void SetFreeDiskBytes(std::int64_t bytes) { free_disk_bytes_ = bytes; }

  // When OnTick wants to be called next.
  absl::Time deadline() const;
  bool Holds(const AttemptKey& key) const { return attempts_.count(key) > 0; }
  std::size_t held() const { return attempts_.size(); }

 private:
  enum class Link { kAway, kConnecting, kWelcomed };
  using Attempts = std::map<AttemptKey, std::unique_ptr<AttemptMachine>>;

  void Handle(const v1::Welcome& welcome, absl::Time now);
  void Handle(const v1::Assignment& assignment, absl::Time now);
  void Handle(const v1::StopAttempt& stop, absl::Time now);
  void Handle(const v1::EventAck& ack, absl::Time now);
  void Handle(const v1::CheckpointNow& checkpoint, absl::Time now);
  void Handle(const v1::MeetAt& meet_at, absl::Time now);
  void Handle(const v1::Contribution& contribution, absl::Time now);
  void Refuse(const v1::Assignment& assignment, const std::string& why, absl::Time now);
  // Carries an attempt's actions over into effects; the attempt may be gone afterwards.
  void Apply(const AttemptKey& key, AttemptActions actions, absl::Time now);
  bool DevicesAreFree(const AttemptKey& key) const;
  void LaunchWhatWaited();
  void StopAll(const std::string& reason_code, absl::Time now);
  void SendRegister();
  void SendHeartbeat(absl::Time now);
  void SendEvent(const v1::AttemptEvent& event);
  void SendContributionMessage(v1::Contribution contribution);
  void SendOutputMessage(v1::AttemptOutput output);
  void Send(v1::WorkerMessage message);
  void LeaveIfDone(absl::Time now);
  AgentEffects Take();

  AgentOptions options_;  // only the devices' speeds change
  bool speeds_are_news_ = false;
  const std::function<double()> random_;
  AgentEffects effects_;  // of the call under way
  Attempts attempts_;
  std::vector<std::pair<AttemptKey, LaunchTrainer>> held_back_;  // until their devices are free

  Link link_ = Link::kAway;
  Backoff backoff_;
  absl::Time next_connect_ = absl::InfiniteFuture();
  absl::Time welcome_deadline_ = absl::InfiniteFuture();
  absl::Time next_heartbeat_ = absl::InfiniteFuture();
  absl::Time grace_deadline_ = absl::InfiniteFuture();
  absl::Duration heartbeat_interval_;
  absl::Duration unreachable_grace_;
  std::int64_t free_disk_bytes_ = 0;

  std::deque<v1::AttemptOutput> buffered_output_;
  std::size_t buffered_output_bytes_ = 0;

  bool leaving_ = false;
  bool left_ = false;
  absl::Time leave_deadline_ = absl::InfiniteFuture();
};

}  // namespace offshoot::worker
