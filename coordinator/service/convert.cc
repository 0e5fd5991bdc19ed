#include "coordinator/service/convert.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxNameBytes = 256;
constexpr std::size_t kMaxTextBytes = 16 << 10;
constexpr int kMaxDevices = 1024;
constexpr int kMaxLabels = 256;
constexpr int kMaxHeld = 4096;

void SetTime(google::protobuf::Timestamp* to, absl::Time time) {
  const std::int64_t nanoseconds = absl::ToUnixNanos(time);
  to->set_seconds(nanoseconds / 1'000'000'000);
  to->set_nanos(static_cast<std::int32_t>(nanoseconds % 1'000'000'000));
}

bool IsSet(absl::Time time) {
  return time != absl::InfinitePast() && time != absl::InfiniteFuture();
}

template <typename Repeated>
void SetFiles(Repeated* to, const std::vector<FileEntry>& files) {
  for (const FileEntry& file : files) {
    v1::File* out = to->Add();
    out->set_path(file.path);
    out->set_digest(file.digest);
    out->set_size_bytes(file.size_bytes);
  }
}

using RankList = google::protobuf::RepeatedPtrField<v1::RankMetrics>;

void SetRanks(RankList* to, const std::vector<RankRecord>& ranks) {
  for (const RankRecord& rank : ranks) {
    v1::RankMetrics* out = to->Add();
    out->set_share(rank.share);
    out->set_tokens_per_second(rank.tokens_per_second);
    out->set_wait_seconds(rank.wait_seconds);
  }
}

std::vector<RankRecord> RanksFromProto(const RankList& ranks) {
  std::vector<RankRecord> records;
  for (const v1::RankMetrics& rank : ranks) {
    if (static_cast<int>(records.size()) == kMaxRankRecords) break;
    records.push_back({rank.share(), rank.tokens_per_second(), rank.wait_seconds()});
  }
  return records;
}

std::int64_t TotalSize(const std::vector<FileEntry>& files) {
  std::int64_t total = 0;
  for (const FileEntry& file : files) total += file.size_bytes;
  return total;
}

// Text from outside, cut where it is too long (at a character's beginning).
std::string Bounded(const std::string& text, std::size_t max_bytes = kMaxTextBytes) {
  if (text.size() <= max_bytes) return text;
  std::size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

absl::Status CheckName(absl::string_view what, const std::string& name) {
  if (name.empty() || name.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " must have 1 to ", kMaxNameBytes, " bytes, not ", name.size()));
  }
  return absl::OkStatus();
}

void SetProgress(v1::Progress* to, const ProgressRecord& progress) {
  to->set_step(progress.step);
  to->set_total_steps(progress.total_steps);
  to->set_train_loss(progress.train_loss);
  to->set_tokens_per_second(progress.tokens_per_second);
  SetRanks(to->mutable_ranks(), progress.ranks);
  to->set_tokens(progress.tokens);
  to->set_estimated_seconds_left(progress.estimated_seconds_left);
  to->set_stage(progress.stage);
  if (progress.base_eval_loss) to->set_base_eval_loss(*progress.base_eval_loss);
  if (progress.eval_loss) to->set_eval_loss(*progress.eval_loss);
}

void SetAttempt(v1::Attempt* to, const AttemptRecord& attempt) {
  to->set_number(attempt.number);
  to->set_worker_id(attempt.leader().worker_id.value());
  to->set_worker_name(attempt.leader().worker_name);
  for (const std::string& device : attempt.leader().devices) to->add_devices(device);
  for (const GangMember& member : attempt.members) {
    v1::AttemptMember* out = to->add_members();
    out->set_worker_id(member.worker_id.value());
    out->set_worker_name(member.worker_name);
    for (const std::string& device : member.devices) out->add_devices(device);
    out->set_first_rank(member.first_rank);
  }
  to->set_first_step(attempt.first_step);
  to->set_last_step(attempt.last_step);
  to->set_reason_code(attempt.reason_code);
  to->set_message(attempt.message);
  SetTime(to->mutable_started_time(), attempt.started);
  if (IsSet(attempt.finished)) SetTime(to->mutable_finished_time(), attempt.finished);
}

void SetCheckpoint(v1::Checkpoint* to, const CheckpointRecord& checkpoint) {
  to->set_step(checkpoint.step);
  to->set_attempt(checkpoint.attempt);
  SetFiles(to->mutable_files(), checkpoint.files);
}

}  // namespace

v1::Job ToProto(const JobRecord& job, const JobOverlay& overlay, bool whole) {
  v1::Job out;
  const JobDefinition& definition = *job.definition;
  out.set_job_id(definition.job_id.value());
  out.set_name(definition.name);
  out.set_team(definition.team);
  out.set_queue(definition.queue);
  out.set_state(static_cast<v1::JobState>(job.state));
  out.set_reason_code(job.reason_code);
  out.set_message(job.message);
  const bool waits = job.state == JobState::kQueued || job.state == JobState::kValidating;
  if (waits && overlay.waiting) {
    // Why it went back to the queue, if it did, and what it waits for now.
    out.set_message(job.reason_code.empty()
                        ? *overlay.waiting->sentence
                        : absl::StrCat(job.message, "; ", *overlay.waiting->sentence));
    if (overlay.waiting->infeasible) out.set_reason_code("INFEASIBLE");
    out.set_queue_place(overlay.waiting->place);
    if (IsSet(overlay.waiting->estimated_start)) {
      SetTime(out.mutable_estimated_start_time(), overlay.waiting->estimated_start);
    }
  }
  out.set_attempt(job.attempt_number());
  out.set_derivative_id(job.derivative_id);
  SetTime(out.mutable_created_time(), definition.created);
  if (IsSet(job.started)) SetTime(out.mutable_started_time(), job.started);
  if (IsSet(job.finished)) SetTime(out.mutable_finished_time(), job.finished);
  v1::Progress* progress = out.mutable_progress();
  SetProgress(progress, overlay.progress ? *overlay.progress : job.progress);
  if (progress->total_steps() == 0) progress->set_total_steps(job.total_steps);
  if (job.checkpoint) {
    progress->set_checkpoint_step(job.checkpoint->step);
    progress->set_step(std::max(progress->step(), job.checkpoint->step));
  }
  if (job.result) {
    if (job.result->base_eval_loss) progress->set_base_eval_loss(*job.result->base_eval_loss);
    if (job.result->eval_loss) progress->set_eval_loss(*job.result->eval_loss);
  }
  for (const AttemptRecord& attempt : job.attempts) {
    SetAttempt(out.add_attempts(), attempt);
    if (attempt.open && progress->step() > 0 && attempt.first_step > 0) {
      v1::Attempt* last = out.mutable_attempts(out.attempts_size() - 1);
      last->set_last_step(std::max(last->last_step(), progress->step()));
    }
  }
  out.set_spec_digest(definition.spec_digest);
  out.set_culprit(job.culprit);
  out.set_last_sequence(job.last_sequence);
  if (whole) {
    out.set_spec_yaml(definition.spec_yaml);
    out.set_log_tail(job.log_tail);
  }
  return out;
}

v1::JobEvent ToProto(const JobEventRecord& event) {
  v1::JobEvent out;
  out.set_job_id(event.job_id.value());
  out.set_sequence(event.sequence);
  SetTime(out.mutable_time(), event.time);
  out.set_state(static_cast<v1::JobState>(event.state));
  out.set_attempt(event.attempt);
  out.set_type(event.type);
  out.set_reason_code(event.reason_code);
  out.set_message(event.message);
  out.set_step(event.step);
  return out;
}

v1::StepMetrics ToProto(const StepRecord& step, std::int32_t attempt) {
  v1::StepMetrics out;
  out.set_attempt(attempt);
  out.set_step(step.step);
  out.set_epoch(step.epoch);
  out.set_train_loss(step.train_loss);
  out.set_grad_norm(step.grad_norm);
  out.set_learning_rate(step.learning_rate);
  out.set_tokens(step.tokens);
  out.set_step_seconds(step.step_seconds);
  out.set_tokens_per_second(step.tokens_per_second);
  if (step.eval_loss) out.set_eval_loss(*step.eval_loss);
  SetRanks(out.mutable_ranks(), step.ranks);
  return out;
}

v1::Worker ToProto(const WorkerStatus& status) {
  v1::Worker out;
  const WorkerRecord& worker = status.record;
  out.set_worker_id(worker.worker_id.value());
  out.set_name(worker.name);
  out.set_state(status.lost       ? v1::WORKER_STATE_LOST
                : worker.draining ? v1::WORKER_STATE_DRAINING
                                  : v1::WORKER_STATE_READY);
  v1::Inventory* inventory = out.mutable_inventory();
  inventory->set_hostname(worker.hostname);
  inventory->set_cpu_model(worker.cpu_model);
  inventory->set_cpu_cores(worker.cpu_cores);
  inventory->set_memory_bytes(worker.memory_bytes);
  inventory->set_bf16(worker.bf16);
  inventory->set_boot_id(worker.boot_id);
  for (const std::string& name : worker.instruction_sets) inventory->add_instruction_sets(name);
  for (const DeviceRecord& device : worker.devices) {
    v1::Device* to = inventory->add_devices();
    to->set_device_id(device.device_id);
    to->set_kind(device.kind);
    to->set_threads(device.threads);
    to->set_memory_bytes(device.memory_bytes);
    to->set_model(device.model);
    to->set_driver_version(device.driver_version);
    to->set_speed(device.speed);
  }
  for (const JobId& job_id : status.running) out.add_running_jobs(job_id.value());
  SetTime(out.mutable_last_heartbeat_time(), status.last_heartbeat);
  for (const auto& [key, value] : worker.taints) (*out.mutable_taints())[key] = value;
  out.set_version(worker.version);
  for (const auto& [key, value] : worker.labels) (*out.mutable_labels())[key] = value;
  return out;
}

v1::BaseModel ToProto(const BaseModelRecord& model) {
  v1::BaseModel out;
  out.set_name(model.name);
  out.set_digest(model.digest);
  out.set_base_model_id(model.base_model_id);
  out.set_license(model.license);
  SetFiles(out.mutable_files(), model.files);
  out.set_size_bytes(TotalSize(model.files));
  SetTime(out.mutable_created_time(), model.created);
  return out;
}

v1::Derivative ToProto(const DerivativeRecord& derivative) {
  v1::Derivative out;
  out.set_derivative_id(derivative.derivative_id.value());
  out.set_name(derivative.name);
  out.set_job_id(derivative.job_id.value());
  out.set_team(derivative.team);
  out.set_base_model_id(derivative.base_model_id);
  out.set_base_model_digest(derivative.base_model_digest);
  SetFiles(out.mutable_files(), derivative.files);
  out.set_size_bytes(TotalSize(derivative.files));
  if (derivative.base_eval_loss) out.set_base_eval_loss(*derivative.base_eval_loss);
  if (derivative.eval_loss) out.set_eval_loss(*derivative.eval_loss);
  SetTime(out.mutable_created_time(), derivative.created);
  out.set_digest(derivative.digest);
  return out;
}

v1::CoordinatorMessage ToProto(const SessionMessage& message) {
  v1::CoordinatorMessage out;
  if (const auto* welcome = std::get_if<WelcomeMessage>(&message)) {
    v1::Welcome* to = out.mutable_welcome();
    to->set_protocol_version(kProtocolVersion);
    to->set_coordinator_id(welcome->coordinator_id);
    to->set_heartbeat_interval_ms(absl::ToInt64Milliseconds(welcome->heartbeat_interval));
    to->set_lease_ms(absl::ToInt64Milliseconds(welcome->lease));
    to->set_unreachable_grace_ms(absl::ToInt64Milliseconds(welcome->unreachable_grace));
  } else if (const auto* assign = std::get_if<AssignMessage>(&message)) {
    v1::Assignment* to = out.mutable_assignment();
    to->set_job_id(assign->job_id.value());
    to->set_attempt(assign->attempt);
    to->set_kind(assign->kind == WorkKind::kTrain ? v1::ASSIGNMENT_KIND_TRAIN
                                                  : v1::ASSIGNMENT_KIND_PREFLIGHT);
    to->set_trainer_spec_json(assign->trainer_spec_json);
    for (const std::string& device : assign->device_ids) to->add_device_ids(device);
    to->set_first_rank(assign->first_rank);
    to->set_world_size(assign->world_size);
    for (const InputRecord& input : assign->inputs->inputs) {
      v1::Input* out_input = to->add_inputs();
      out_input->set_spec_pointer(input.spec_pointer);
      out_input->set_shared_path(input.shared_path);
      out_input->set_hub_repository(input.hub_repository);
      out_input->set_hub_commit(input.hub_commit);
      SetFiles(out_input->mutable_files(), input.files);
    }
    if (assign->resume_from) SetCheckpoint(to->mutable_resume_from(), *assign->resume_from);
    to->set_lease_id(assign->lease_id);
    to->set_exchange_artifacts(assign->exchange_artifacts);
    SetTime(to->mutable_job_created_time(), assign->job_created);
  } else if (const auto* stop = std::get_if<StopMessage>(&message)) {
    v1::StopAttempt* to = out.mutable_stop_attempt();
    to->set_job_id(stop->job_id.value());
    to->set_attempt(stop->attempt);
    to->set_checkpoint(stop->checkpoint);
    to->set_reason_code(stop->reason_code);
  } else if (const auto* ack = std::get_if<AckMessage>(&message)) {
    v1::EventAck* to = out.mutable_event_ack();
    to->set_job_id(ack->job_id.value());
    to->set_attempt(ack->attempt);
    to->set_sequence(ack->sequence);
    to->set_fenced(ack->fenced);
  } else if (const auto* meet = std::get_if<MeetAtMessage>(&message)) {
    v1::MeetAt* to = out.mutable_meet_at();
    to->set_job_id(meet->job_id.value());
    to->set_attempt(meet->attempt);
    to->set_address(meet->address);
    to->set_port(meet->port);
  } else if (const auto* contribution = std::get_if<ContributionInfo>(&message)) {
    v1::Contribution* to = out.mutable_contribution();
    to->set_job_id(contribution->job_id.value());
    to->set_attempt(contribution->attempt);
    to->set_rank(contribution->rank);
    to->set_round(contribution->round);
    to->mutable_file()->set_digest(contribution->file.digest);
    to->mutable_file()->set_size_bytes(contribution->file.size_bytes);
  }
  return out;
}

absl::StatusOr<std::vector<FileEntry>> FilesFromProto(
    const google::protobuf::RepeatedPtrField<v1::File>& files) {
  if (files.size() > kMaxFilesPerMessage) {
    return absl::InvalidArgumentError(
        absl::StrCat("at most ", kMaxFilesPerMessage, " files may be named, not ", files.size()));
  }
  std::vector<FileEntry> entries;
  for (const v1::File& file : files) {
    if (!file.path().empty() && !IsSafeRelativePath(file.path())) {
      return absl::InvalidArgumentError(absl::StrCat("the file path '", Bounded(file.path(), 200),
                                                     "' does not stay below its directory"));
    }
    if (!IsDigest(file.digest()) || file.size_bytes() < 0) {
      return absl::InvalidArgumentError(absl::StrCat("the file '", Bounded(file.path(), 200),
                                                     "' has no digest sha256:<64 hex digits> or"
                                                     " no size"));
    }
    entries.push_back(FileEntry{file.path(), file.digest(), file.size_bytes()});
  }
  return entries;
}

absl::StatusOr<RegisterInfo> RegisterFromProto(const v1::Register& message) {
  RegisterInfo info;
  info.protocol_version = message.protocol_version();
  RETURN_IF_ERROR(CheckName("worker_id", message.worker_id()));
  RETURN_IF_ERROR(CheckName("incarnation_id", message.incarnation_id()));
  RETURN_IF_ERROR(CheckName("name", message.name()));
  const v1::Inventory& inventory = message.inventory();
  if (inventory.devices_size() > kMaxDevices || message.labels_size() > kMaxLabels ||
      message.taints_size() > kMaxLabels) {
    return absl::InvalidArgumentError(absl::StrCat("a worker offers at most ", kMaxDevices,
                                                   " devices and has at most ", kMaxLabels,
                                                   " labels"));
  }
  WorkerRecord& worker = info.worker;
  worker.worker_id = WorkerId(message.worker_id());
  worker.incarnation_id = IncarnationId(message.incarnation_id());
  worker.name = message.name();
  worker.version = Bounded(message.version(), kMaxNameBytes);
  worker.hostname = Bounded(inventory.hostname(), kMaxNameBytes);
  worker.cpu_model = Bounded(inventory.cpu_model(), kMaxNameBytes);
  worker.cpu_cores = inventory.cpu_cores();
  worker.memory_bytes = inventory.memory_bytes();
  worker.bf16 = inventory.bf16();
  worker.boot_id = Bounded(inventory.boot_id(), kMaxNameBytes);
  worker.address = Bounded(message.address(), kMaxNameBytes);
  for (const std::string& name : inventory.instruction_sets()) {
    worker.instruction_sets.push_back(Bounded(name, kMaxNameBytes));
  }
  for (const v1::Device& device : inventory.devices()) {
    RETURN_IF_ERROR(CheckName("device_id", device.device_id()));
    worker.devices.push_back(DeviceRecord{
        device.device_id(), Bounded(device.kind(), 32), device.threads(), device.memory_bytes(),
        Bounded(device.model(), kMaxNameBytes), Bounded(device.driver_version(), kMaxNameBytes),
        std::isfinite(device.speed()) ? device.speed() : 0});
  }
  for (const auto& [key, value] : message.labels()) {
    worker.labels[Bounded(key, kMaxNameBytes)] = Bounded(value, kMaxNameBytes);
  }
  for (const auto& [key, value] : message.taints()) {
    worker.taints[Bounded(key, kMaxNameBytes)] = Bounded(value, kMaxNameBytes);
  }
  ASSIGN_OR_RETURN(info.held, HeldFromProto(message.held_attempts()));
  return info;
}

absl::StatusOr<std::vector<HeldAttemptInfo>> HeldFromProto(
    const google::protobuf::RepeatedPtrField<v1::HeldAttempt>& held) {
  if (held.size() > kMaxHeld) {
    return absl::InvalidArgumentError(
        absl::StrCat("a worker holds at most ", kMaxHeld, " attempts, not ", held.size()));
  }
  std::vector<HeldAttemptInfo> out;
  for (const v1::HeldAttempt& attempt : held) {
    out.push_back(
        HeldAttemptInfo{JobId(attempt.job_id()), attempt.attempt(), attempt.next_event_sequence()});
  }
  return out;
}

absl::StatusOr<AttemptReport> ReportFromProto(const v1::AttemptEvent& message) {
  AttemptReport report;
  RETURN_IF_ERROR(CheckName("job_id", message.job_id()));
  report.job_id = JobId(message.job_id());
  report.attempt = message.attempt();
  report.sequence = message.sequence();
  switch (message.event_case()) {
    case v1::AttemptEvent::kStarted:
      report.event = Started{message.started().first_step(), message.started().total_steps()};
      return report;
    case v1::AttemptEvent::kCheckpointed: {
      Checkpointed event;
      event.checkpoint.step = message.checkpointed().checkpoint().step();
      event.checkpoint.attempt = message.attempt();
      ASSIGN_OR_RETURN(event.checkpoint.files,
                       FilesFromProto(message.checkpointed().checkpoint().files()));
      report.event = std::move(event);
      return report;
    }
    case v1::AttemptEvent::kPublishing:
      report.event = PublishingBegun{message.publishing().last_step()};
      return report;
    case v1::AttemptEvent::kResult: {
      ResultUploaded event;
      ASSIGN_OR_RETURN(event.result.files, FilesFromProto(message.result().files()));
      if (message.result().has_base_eval_loss()) {
        event.result.base_eval_loss = message.result().base_eval_loss();
      }
      if (message.result().has_eval_loss()) event.result.eval_loss = message.result().eval_loss();
      event.first_step = message.result().first_step();
      event.last_step = message.result().last_step();
      report.event = std::move(event);
      return report;
    }
    case v1::AttemptEvent::kEnded: {
      const v1::AttemptEnded& ended = message.ended();
      report.event = AttemptEnded{Bounded(ended.reason_code(), 64),
                                  Bounded(ended.message()),
                                  ended.retryable(),
                                  ended.first_step(),
                                  ended.last_step(),
                                  Bounded(ended.log_tail(), 4096)};
      return report;
    }
    case v1::AttemptEvent::kPreflight: {
      const v1::PreflightResult& result = message.preflight();
      report.event =
          PreflightReport{result.ok(), Bounded(result.reason_code(), 64), Bounded(result.message()),
                          Bounded(result.result_json(), 64 << 10), result.retryable()};
      return report;
    }
    case v1::AttemptEvent::kListening: {
      const v1::AttemptListening& listening = message.listening();
      RETURN_IF_ERROR(CheckName("address", listening.address()));
      if (listening.port() < 1 || listening.port() > 65535) {
        return absl::InvalidArgumentError(
            absl::StrCat("the port of rank 0 is ", listening.port(), "; ports are 1 to 65535"));
      }
      report.event = ListeningReport{listening.address(), listening.port()};
      return report;
    }
    case v1::AttemptEvent::EVENT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "the attempt event says nothing this coordinator knows; install the same version of Offshoot"
      " on both");
}

absl::StatusOr<ContributionInfo> ContributionFromProto(const v1::Contribution& message) {
  RETURN_IF_ERROR(CheckName("job_id", message.job_id()));
  if (message.rank() < 0 || message.round() < 1 || !IsDigest(message.file().digest()) ||
      message.file().size_bytes() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the contribution of rank ", message.rank(), " to round ", message.round(),
                     " has no such rank or round, no digest sha256:<64 hex digits> or no size"));
  }
  return ContributionInfo{JobId(message.job_id()), message.attempt(), message.rank(),
                          message.round(),
                          FileEntry{"", message.file().digest(), message.file().size_bytes()}};
}

StepRecord StepFromProto(const v1::StepMetrics& metrics) {
  StepRecord step;
  step.step = metrics.step();
  step.epoch = metrics.epoch();
  step.train_loss = metrics.train_loss();
  step.grad_norm = metrics.grad_norm();
  step.learning_rate = metrics.learning_rate();
  step.tokens = metrics.tokens();
  step.step_seconds = metrics.step_seconds();
  step.tokens_per_second = metrics.tokens_per_second();
  if (metrics.has_eval_loss()) step.eval_loss = metrics.eval_loss();
  step.ranks = RanksFromProto(metrics.ranks());
  return step;
}

ProgressRecord ProgressFromProto(const v1::Progress& progress) {
  ProgressRecord record;
  record.step = progress.step();
  record.total_steps = progress.total_steps();
  record.train_loss = progress.train_loss();
  record.tokens_per_second = progress.tokens_per_second();
  record.ranks = RanksFromProto(progress.ranks());
  record.tokens = progress.tokens();
  record.estimated_seconds_left = progress.estimated_seconds_left();
  record.stage = Bounded(progress.stage(), 64);
  if (progress.has_base_eval_loss()) record.base_eval_loss = progress.base_eval_loss();
  if (progress.has_eval_loss()) record.eval_loss = progress.eval_loss();
  return record;
}

}  // namespace offshoot
