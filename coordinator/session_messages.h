// What the controller says to a worker, as values, and the door through which it says it. The gRPC
// session is one implementation; tests and the simulation have others.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/lifecycle.h"
#include "coordinator/records.h"
#include "coordinator/scheduler.h"

namespace offshoot {

inline constexpr int kProtocolVersion = 1;

// --- to the worker ---

struct WelcomeMessage {
  std::string coordinator_id;
  absl::Duration heartbeat_interval;
  absl::Duration lease;
  absl::Duration unreachable_grace;
};

struct AssignMessage {
  JobId job_id;
  std::int32_t attempt = 0;  // preflight: 0
  WorkKind kind = WorkKind::kTrain;
  std::string trainer_spec_json;
  std::vector<std::string> device_ids;
  int first_rank = 0;
  int world_size = 0;  // over all workers of the gang; preflight: 0
  absl::Time job_created = absl::UnixEpoch();
  std::shared_ptr<const JobInputs> inputs;
  std::optional<CheckpointRecord> resume_from;
  std::string lease_id;
  bool exchange_artifacts = false;  // the ranks do not meet (ContributionInfo)
};

struct StopMessage {
  JobId job_id;
  std::int32_t attempt = 0;
  bool checkpoint = false;
  std::string reason_code;
};

struct AckMessage {
  JobId job_id;
  std::int32_t attempt = 0;
  std::int64_t sequence = 0;
  bool fenced = false;
};

// Where rank 0 of a gang over several workers listens.
struct MeetAtMessage {
  JobId job_id;
  std::int32_t attempt = 0;
  std::string address;
  int port = 0;
};

// Both ways: what a rank of a gang that exchanges artifacts adds to a round.
struct ContributionInfo {
  JobId job_id;
  std::int32_t attempt = 0;
  int rank = 0;
  std::int64_t round = 0;
  FileEntry file;
  bool operator==(const ContributionInfo&) const = default;
};

using SessionMessage = std::variant<WelcomeMessage, AssignMessage, StopMessage, AckMessage,
                                    MeetAtMessage, ContributionInfo>;

// Thread-safe; neither call blocks.
class SessionPeer {
 public:
  virtual ~SessionPeer() = default;
  virtual void Send(SessionMessage message) = 0;
  virtual void Close(absl::Status status) = 0;
};

// --- from the worker ---

struct HeldAttemptInfo {
  JobId job_id;
  std::int32_t attempt = 0;
  std::int64_t next_sequence = 0;  // of the oldest event it still has to tell
};

struct RegisterInfo {
  int protocol_version = 0;
  WorkerRecord worker;
  std::vector<HeldAttemptInfo> held;
};

struct ListeningReport {
  std::string address;
  int port = 0;
};

struct PreflightReport {
  bool ok = false;
  std::string reason_code;
  std::string message;
  std::string result_json;
  bool retryable = false;
};

struct AttemptReport {
  JobId job_id;
  std::int32_t attempt = 0;
  std::int64_t sequence = 0;
  std::variant<Started, Checkpointed, PublishingBegun, ResultUploaded, AttemptEnded,
               PreflightReport, ListeningReport>
      event;
};

}  // namespace offshoot
