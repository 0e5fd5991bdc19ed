#include "worker/agent.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/planted_bugs.h"
#include "google/protobuf/util/time_util.h"

namespace offshoot::worker {
namespace {

AttemptKey KeyOf(const std::string& job_id, std::int32_t attempt) {
  return {JobId(job_id), AttemptNumber{attempt}};
}

// A session refused with one of these is refused again the next time.
bool IsLastingRefusal(const absl::Status& status) {
  return absl::IsUnimplemented(status) || absl::IsUnauthenticated(status) ||
         absl::IsPermissionDenied(status) || absl::IsInvalidArgument(status) ||
         absl::IsFailedPrecondition(status);
}

}  // namespace

Agent::Agent(AgentOptions options, std::function<double()> random)
    : options_(std::move(options)),
      random_(std::move(random)),
      backoff_(options_.reconnect),
      heartbeat_interval_(options_.heartbeat_interval),
      unreachable_grace_(options_.unreachable_grace) {}

AgentEffects Agent::Take() {
  LaunchWhatWaited();
  return std::exchange(effects_, {});
}

AgentEffects Agent::Start(const std::vector<RecoveredAttempt>& recovered, absl::Time now) {
  for (const RecoveredAttempt& attempt : recovered) {
    auto machine = std::make_unique<AttemptMachine>(attempt.assignment, options_.limits);
    const AttemptKey key = machine->key();
    AttemptMachine& reference = *machine;
    attempts_[key] = std::move(machine);
    Apply(key, reference.Recover(attempt, now), now);
  }
  next_connect_ = now;
  grace_deadline_ = now + unreachable_grace_;
  return OnTick(now);
}

AgentEffects Agent::OnMessage(const v1::CoordinatorMessage& message, absl::Time now) {
  switch (message.message_case()) {
    case v1::CoordinatorMessage::kWelcome:
      Handle(message.welcome(), now);
      break;
    case v1::CoordinatorMessage::kAssignment:
      Handle(message.assignment(), now);
      break;
    case v1::CoordinatorMessage::kStopAttempt:
      Handle(message.stop_attempt(), now);
      break;
    case v1::CoordinatorMessage::kEventAck:
      Handle(message.event_ack(), now);
      break;
    case v1::CoordinatorMessage::kCheckpointNow:
      Handle(message.checkpoint_now(), now);
      break;
    case v1::CoordinatorMessage::kMeetAt:
      Handle(message.meet_at(), now);
      break;
    case v1::CoordinatorMessage::kContribution:
      Handle(message.contribution(), now);
      break;
    case v1::CoordinatorMessage::MESSAGE_NOT_SET:
      break;  // of a newer coordinator; the protocol version says when that matters
  }
  LeaveIfDone(now);
  return Take();
}

void Agent::Handle(const v1::Welcome& welcome, absl::Time now) {
  if (link_ != Link::kConnecting) return;
  link_ = Link::kWelcomed;
  backoff_.Reset();
  welcome_deadline_ = absl::InfiniteFuture();
  grace_deadline_ = absl::InfiniteFuture();
  constexpr std::int64_t kShortestHeartbeatMs = 10;
  constexpr std::int64_t kLongestHeartbeatMs = 600'000;
  if (welcome.heartbeat_interval_ms() > 0) {
    heartbeat_interval_ = absl::Milliseconds(std::clamp<std::int64_t>(
        welcome.heartbeat_interval_ms(), kShortestHeartbeatMs, kLongestHeartbeatMs));
  }
  if (welcome.unreachable_grace_ms() > 0) {
    unreachable_grace_ = absl::Milliseconds(welcome.unreachable_grace_ms());
  }
  next_heartbeat_ = now + heartbeat_interval_;
  for (const auto& [key, machine] : attempts_) {
    // Before its end: of a worker that has ended nothing is passed on, and others may wait for it.
    for (v1::Contribution& contribution : machine->contributions()) {
      SendContributionMessage(std::move(contribution));
    }
    for (const v1::AttemptEvent& event : machine->unacknowledged()) SendEvent(event);
  }
  for (v1::AttemptOutput& output : std::exchange(buffered_output_, {})) {
    SendOutputMessage(std::move(output));
  }
  buffered_output_bytes_ = 0;
}

void Agent::Handle(const v1::Assignment& assignment, absl::Time now) {
  const AttemptKey key = KeyOf(assignment.job_id(), assignment.attempt());
  // The id becomes a directory's name.
  if (!IsSafeRelativePath(ToString(key)) || assignment.job_id().find('/') != std::string::npos) {
    return;
  }
  // An assignment may be sent again (its effect was repeated after a crash): we are at it.
  if (Holds(key)) return;
  if (leaving_) {
    Refuse(assignment, "the worker is leaving", now);
    return;
  }
  if (attempts_.size() >= options_.max_attempts) {
    Refuse(assignment, absl::StrCat("the worker already holds ", attempts_.size(), " attempts"),
           now);
    return;
  }
  auto machine = std::make_unique<AttemptMachine>(assignment, options_.limits);
  AttemptMachine& reference = *machine;
  attempts_[key] = std::move(machine);
  effects_.push_back(BeginAttempt{key, assignment});
  Apply(key, reference.Start(), now);
}

void Agent::Refuse(const v1::Assignment& assignment, const std::string& why, absl::Time now) {
  v1::WorkerMessage message;
  v1::AttemptEvent* event = message.mutable_attempt_event();
  event->set_job_id(assignment.job_id());
  event->set_attempt(assignment.attempt());
  event->set_sequence(1);
  *event->mutable_time() =
      google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(now));
  if (assignment.kind() == v1::ASSIGNMENT_KIND_PREFLIGHT) {
    event->mutable_preflight()->set_reason_code(kWorkerLeaving);
    event->mutable_preflight()->set_message(why);
    event->mutable_preflight()->set_retryable(true);
  } else {
    event->mutable_ended()->set_reason_code(kWorkerLeaving);
    event->mutable_ended()->set_message(why);
    event->mutable_ended()->set_retryable(true);
  }
  Send(std::move(message));
}

void Agent::Handle(const v1::StopAttempt& stop, absl::Time now) {
  const AttemptKey key = KeyOf(stop.job_id(), stop.attempt());
  const auto found = attempts_.find(key);
  if (found == attempts_.end()) return;
  Apply(key, found->second->OnStop(stop.checkpoint(), stop.reason_code(), now), now);
}

void Agent::Handle(const v1::EventAck& ack, absl::Time now) {
  const AttemptKey key = KeyOf(ack.job_id(), ack.attempt());
  const auto found = attempts_.find(key);
  if (found == attempts_.end()) return;
  if (!ack.fenced()) effects_.push_back(RecordAck{key, ack.sequence()});
  Apply(key, found->second->OnEventAck(ack.sequence(), ack.fenced(), now), now);
}

void Agent::Handle(const v1::CheckpointNow& checkpoint, absl::Time now) {
  const AttemptKey key = KeyOf(checkpoint.job_id(), checkpoint.attempt());
  const auto found = attempts_.find(key);
  if (found == attempts_.end()) return;
  Apply(key, found->second->OnCheckpointNow(), now);
}

void Agent::Handle(const v1::MeetAt& meet_at, absl::Time now) {
  const AttemptKey key = KeyOf(meet_at.job_id(), meet_at.attempt());
  const auto found = attempts_.find(key);
  if (found == attempts_.end()) return;
  Apply(key, found->second->OnMeetAt({meet_at.address(), meet_at.port()}), now);
}

void Agent::Handle(const v1::Contribution& contribution, absl::Time now) {
  const AttemptKey key = KeyOf(contribution.job_id(), contribution.attempt());
  const auto found = attempts_.find(key);
  if (found == attempts_.end()) return;
  Apply(key, found->second->OnContribution(contribution), now);
}

AgentEffects Agent::OnDisconnected(const absl::Status& status, absl::Time now) {
  if (link_ == Link::kWelcomed) grace_deadline_ = now + unreachable_grace_;
  link_ = Link::kAway;
  welcome_deadline_ = absl::InfiniteFuture();
  next_heartbeat_ = absl::InfiniteFuture();
  if (IsLastingRefusal(status) && attempts_.empty() && !left_) {
    left_ = true;
    effects_.push_back(LeaveNow{status});
    return Take();
  }
  next_connect_ = now + backoff_.Next(random_());
  LeaveIfDone(now);
  return Take();
}

AgentEffects Agent::OnAttempt(const AttemptKey& key, const AttemptInput& input, absl::Time now) {
  const auto found = attempts_.find(key);
  if (found != attempts_.end()) Apply(key, found->second->OnInput(input, now), now);
  LeaveIfDone(now);
  return Take();
}

AgentEffects Agent::OnLog(const AttemptKey& key, std::int64_t offset, absl::string_view text,
                          absl::Time) {
  if (!Holds(key)) return {};
  constexpr std::size_t kMaxLogBytes = 64 << 10;
  while (!text.empty()) {
    v1::AttemptOutput output;
    output.set_job_id(key.job_id.value());
    output.set_attempt(static_cast<std::int32_t>(key.attempt));
    output.set_log_offset(offset);
    const absl::string_view piece = text.substr(0, kMaxLogBytes);
    output.set_log(piece.data(), piece.size());
    SendOutputMessage(std::move(output));
    text.remove_prefix(piece.size());
    offset += static_cast<std::int64_t>(piece.size());
  }
  return Take();
}

AgentEffects Agent::OnTick(absl::Time now) {
  if (link_ == Link::kAway && now >= next_connect_) {
    link_ = Link::kConnecting;
    next_connect_ = absl::InfiniteFuture();
    welcome_deadline_ = now + options_.welcome_timeout;
    effects_.push_back(Connect{});
    SendRegister();
  }
  if (link_ == Link::kConnecting && now >= welcome_deadline_) {
    // Its end comes as OnDisconnected.
    welcome_deadline_ = absl::InfiniteFuture();
    effects_.push_back(Disconnect{});
  }
  if (link_ == Link::kWelcomed && now >= next_heartbeat_) SendHeartbeat(now);
  if (now >= grace_deadline_) {
    grace_deadline_ = absl::InfiniteFuture();
    StopAll(kCoordinatorUnreachable, now);
  }
  std::vector<AttemptKey> due;
  for (const auto& [key, machine] : attempts_) {
    if (machine->deadline() <= now) due.push_back(key);
  }
  for (const AttemptKey& key : due) Apply(key, attempts_.at(key)->OnTick(now), now);
  LeaveIfDone(now);
  return Take();
}

absl::Time Agent::deadline() const {
  absl::Time deadline = std::min(
      {next_connect_, welcome_deadline_, next_heartbeat_, grace_deadline_, leave_deadline_});
  for (const auto& [key, machine] : attempts_) {
    deadline = std::min(deadline, machine->deadline());
  }
  return deadline;
}

AgentEffects Agent::Leave(absl::Time now) {
  if (!leaving_) {
    leaving_ = true;
    leave_deadline_ = now + options_.leave_timeout;
    StopAll(kWorkerLeaving, now);
  }
  LeaveIfDone(now);
  return Take();
}

void Agent::StopAll(const std::string& reason_code, absl::Time now) {
  std::vector<AttemptKey> keys;
  for (const auto& [key, machine] : attempts_) keys.push_back(key);
  for (const AttemptKey& key : keys) {
    Apply(key, attempts_.at(key)->OnStop(/*checkpoint=*/true, reason_code, now), now);
  }
}

void Agent::LeaveIfDone(absl::Time now) {
  if (!leaving_ || left_) return;
  // What could not be delivered in time is on disk, and delivered after the next start.
  if (attempts_.empty() || now >= leave_deadline_) {
    left_ = true;
    leave_deadline_ = absl::InfiniteFuture();
    effects_.push_back(LeaveNow{absl::OkStatus()});
  }
}

void Agent::Apply(const AttemptKey& key, AttemptActions actions, absl::Time now) {
  bool launch_given_up = false;
  for (AttemptAction& action : actions) {
    if (auto* launch = std::get_if<LaunchTrainer>(&action)) {
      held_back_.emplace_back(key, std::move(*launch));
    } else if (auto* emit = std::get_if<EmitEvent>(&action)) {
      effects_.push_back(PersistEvent{key, emit->event});
      if (link_ == Link::kWelcomed) SendEvent(emit->event);
    } else if (auto* output = std::get_if<SendOutput>(&action)) {
      SendOutputMessage(std::move(output->output));
    } else if (auto* send = std::get_if<SendContribution>(&action)) {
      if (link_ == Link::kWelcomed) SendContributionMessage(std::move(send->contribution));
    } else if (std::holds_alternative<Forget>(action)) {
      effects_.push_back(ForgetAttempt{key});
      attempts_.erase(key);
      return;
    } else {
      if (std::holds_alternative<CancelTasks>(action)) {
        launch_given_up =
            std::erase_if(held_back_, [&](const auto& held) { return held.first == key; }) > 0;
      }
      effects_.push_back(RunAction{key, std::move(action)});
    }
  }
  if (launch_given_up) {
    const TaskFailed failed{AttemptTask::kLaunch, absl::CancelledError("given up by request")};
    Apply(key, attempts_.at(key)->OnInput(failed, now), now);
  }
}

bool Agent::DevicesAreFree(const AttemptKey& key) const {
  if (Planted(PlantedBug::kDeviceSharedBriefly)) return true;
  const auto& wanted = attempts_.at(key)->assignment().device_ids();
  return std::none_of(attempts_.begin(), attempts_.end(), [&](const auto& entry) {
    const AttemptMachine& other = *entry.second;
    const auto& taken = other.assignment().device_ids();
    return entry.first != key && other.process_wanted() &&
           std::none_of(held_back_.begin(), held_back_.end(),
                        [&](const auto& held) { return held.first == entry.first; }) &&
           std::find_first_of(wanted.begin(), wanted.end(), taken.begin(), taken.end()) !=
               wanted.end();
  });
}

void Agent::LaunchWhatWaited() {
  for (auto held = held_back_.begin(); held != held_back_.end();) {
    if (!DevicesAreFree(held->first)) {
      ++held;
      continue;
    }
    effects_.push_back(RunAction{held->first, std::move(held->second)});
    held = held_back_.erase(held);
  }
}

void Agent::SendRegister() {
  v1::WorkerMessage message;
  v1::Register* registration = message.mutable_register_();
  registration->set_protocol_version(kProtocolVersion);
  registration->set_version(options_.version);
  registration->set_worker_id(options_.worker_id);
  registration->set_incarnation_id(options_.incarnation_id);
  registration->set_name(options_.name);
  registration->set_address(options_.address);
  *registration->mutable_inventory() = options_.inventory;
  for (const auto& [key, machine] : attempts_) {
    *registration->add_held_attempts() = machine->Held();
  }
  for (const auto& [key, value] : options_.labels) {
    (*registration->mutable_labels())[key] = value;
  }
  for (const auto& [key, value] : options_.taints) {
    (*registration->mutable_taints())[key] = value;
  }
  Send(std::move(message));
}

void Agent::SetDeviceSpeed(const std::string& device_id, double speed) {
  for (v1::Device& device : *options_.inventory.mutable_devices()) {
    if (device.device_id() == device_id) device.set_speed(speed);
  }
  speeds_are_news_ = true;
}

void Agent::SendHeartbeat(absl::Time now) {
  next_heartbeat_ = now + heartbeat_interval_;
  v1::WorkerMessage message;
  v1::Heartbeat* heartbeat = message.mutable_heartbeat();
  for (const auto& [key, machine] : attempts_) *heartbeat->add_held_attempts() = machine->Held();
  heartbeat->set_free_disk_bytes(free_disk_bytes_);
  if (std::exchange(speeds_are_news_, false)) {
    for (const v1::Device& device : options_.inventory.devices()) {
      if (device.speed() > 0) {
        (*heartbeat->mutable_device_speeds())[device.device_id()] = device.speed();
      }
    }
  }
  Send(std::move(message));
}

void Agent::SendEvent(const v1::AttemptEvent& event) {
  v1::WorkerMessage message;
  *message.mutable_attempt_event() = event;
  Send(std::move(message));
}

void Agent::SendContributionMessage(v1::Contribution contribution) {
  v1::WorkerMessage message;
  *message.mutable_contribution() = std::move(contribution);
  Send(std::move(message));
}

void Agent::SendOutputMessage(v1::AttemptOutput output) {
  if (link_ == Link::kWelcomed) {
    v1::WorkerMessage message;
    *message.mutable_attempt_output() = std::move(output);
    Send(std::move(message));
    return;
  }
  buffered_output_bytes_ += output.ByteSizeLong();
  buffered_output_.push_back(std::move(output));
  while (buffered_output_bytes_ > options_.max_buffered_output_bytes) {
    buffered_output_bytes_ -= buffered_output_.front().ByteSizeLong();
    buffered_output_.pop_front();
  }
}

void Agent::Send(v1::WorkerMessage message) { effects_.push_back(SendMessage{std::move(message)}); }

}  // namespace offshoot::worker
