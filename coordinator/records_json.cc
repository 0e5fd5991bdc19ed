#include "coordinator/records_json.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace offshoot {
namespace {

using Json = nlohmann::json;

// Microseconds since 1970; the infinities stand for "never" and are left out.
void PutTime(Json& json, const char* key, absl::Time time) {
  if (time == absl::InfinitePast() || time == absl::InfiniteFuture()) return;
  json[key] = absl::ToUnixMicros(time);
}

absl::Time GetTime(const Json& json, const char* key) {
  const auto it = json.find(key);
  return it == json.end() ? absl::InfinitePast() : absl::FromUnixMicros(it->get<std::int64_t>());
}

template <typename T>
void Put(Json& json, const char* key, const T& value) {
  if (value != T()) json[key] = value;
}

template <typename T>
void Get(const Json& json, const char* key, T& value) {
  const auto it = json.find(key);
  if (it != json.end()) value = it->get<T>();
}

template <typename T>
void PutOptional(Json& json, const char* key, const std::optional<T>& value) {
  if (value) json[key] = *value;
}

// JSON has no infinity and no NaN: such a loss is written as null.
void GetNumber(const Json& json, const char* key, double& value) {
  const auto it = json.find(key);
  if (it == json.end()) return;
  value = it->is_null() ? std::numeric_limits<double>::quiet_NaN() : it->get<double>();
}

void GetOptional(const Json& json, const char* key, std::optional<double>& value) {
  if (json.contains(key)) GetNumber(json, key, value.emplace());
}

template <typename IdType>
void GetId(const Json& json, const char* key, IdType& id) {
  const auto it = json.find(key);
  if (it != json.end()) id = IdType(it->get<std::string>());
}

Json FilesToJson(const std::vector<FileEntry>& files) {
  Json list = Json::array();
  for (const FileEntry& file : files) list.push_back({file.path, file.digest, file.size_bytes});
  return list;
}

std::vector<FileEntry> FilesFromJson(const Json& json, const char* key) {
  std::vector<FileEntry> files;
  const auto it = json.find(key);
  if (it == json.end()) return files;
  for (const Json& entry : *it) {
    files.push_back(FileEntry{entry.at(0).get<std::string>(), entry.at(1).get<std::string>(),
                              entry.at(2).get<std::int64_t>()});
  }
  return files;
}

Json ProgressToJson(const ProgressRecord& progress) {
  Json json = {{"step", progress.step}, {"total_steps", progress.total_steps}};
  Put(json, "train_loss", progress.train_loss);
  Put(json, "tokens_per_second", progress.tokens_per_second);
  for (const RankRecord& rank : progress.ranks) {
    json["ranks"].push_back({rank.share, rank.tokens_per_second, rank.wait_seconds});
  }
  Put(json, "tokens", progress.tokens);
  Put(json, "stage", progress.stage);
  PutOptional(json, "base_eval_loss", progress.base_eval_loss);
  PutOptional(json, "eval_loss", progress.eval_loss);
  return json;
}

ProgressRecord ProgressFromJson(const Json& json) {
  ProgressRecord progress;
  Get(json, "step", progress.step);
  Get(json, "total_steps", progress.total_steps);
  GetNumber(json, "train_loss", progress.train_loss);
  GetNumber(json, "tokens_per_second", progress.tokens_per_second);
  for (const Json& rank : json.value("ranks", Json::array())) {
    progress.ranks.push_back({rank.at(0), rank.at(1), rank.at(2)});
  }
  Get(json, "tokens", progress.tokens);
  Get(json, "stage", progress.stage);
  GetOptional(json, "base_eval_loss", progress.base_eval_loss);
  GetOptional(json, "eval_loss", progress.eval_loss);
  return progress;
}

Json MemberToJson(const GangMember& member) {
  Json json = {{"worker_id", member.worker_id.value()}};
  Put(json, "worker_name", member.worker_name);
  Put(json, "devices", member.devices);
  Put(json, "first_rank", member.first_rank);
  Put(json, "acknowledged_sequence", member.acknowledged_sequence);
  Put(json, "ended", member.ended);
  Put(json, "hung", member.hung);
  Put(json, "left", member.left);
  return json;
}

GangMember MemberFromJson(const Json& json) {
  GangMember member;
  GetId(json, "worker_id", member.worker_id);
  Get(json, "worker_name", member.worker_name);
  Get(json, "devices", member.devices);
  Get(json, "first_rank", member.first_rank);
  Get(json, "acknowledged_sequence", member.acknowledged_sequence);
  Get(json, "ended", member.ended);
  Get(json, "hung", member.hung);
  Get(json, "left", member.left);
  return member;
}

Json AttemptToJson(const AttemptRecord& attempt) {
  Json members = Json::array();
  for (const GangMember& member : attempt.members) members.push_back(MemberToJson(member));
  Json json = {{"number", attempt.number}, {"open", attempt.open}, {"members", std::move(members)}};
  Put(json, "meet_address", attempt.meet_address);
  Put(json, "meet_port", attempt.meet_port);
  Put(json, "lease_id", attempt.lease_id);
  Put(json, "device_class", attempt.device_class);
  Put(json, "first_step", attempt.first_step);
  Put(json, "last_step", attempt.last_step);
  Put(json, "reason_code", attempt.reason_code);
  Put(json, "message", attempt.message);
  PutTime(json, "started", attempt.started);
  PutTime(json, "finished", attempt.finished);
  return json;
}

AttemptRecord AttemptFromJson(const Json& json) {
  AttemptRecord attempt;
  Get(json, "number", attempt.number);
  Get(json, "open", attempt.open);
  Get(json, "meet_address", attempt.meet_address);
  Get(json, "meet_port", attempt.meet_port);
  if (json.contains("members")) {
    for (const Json& member : json.at("members")) {
      attempt.members.push_back(MemberFromJson(member));
    }
  } else {
    attempt.members.push_back(MemberFromJson(json));  // as written before there were gangs
  }
  Get(json, "lease_id", attempt.lease_id);
  Get(json, "device_class", attempt.device_class);
  Get(json, "first_step", attempt.first_step);
  Get(json, "last_step", attempt.last_step);
  Get(json, "reason_code", attempt.reason_code);
  Get(json, "message", attempt.message);
  attempt.started = GetTime(json, "started");
  attempt.finished = GetTime(json, "finished");
  return attempt;
}

// Invalid UTF-8 in a message is replaced, never a reason to fail.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Runs a decoder that may throw on JSON of the wrong shape; no exception leaves this file.
template <typename Function>
absl::Status Decode(absl::string_view what, absl::string_view text, Function&& function) {
  try {
    function(Json::parse(text.begin(), text.end()));
    return absl::OkStatus();
  } catch (const Json::exception& error) {
    return absl::DataLossError(absl::StrCat("the store's ", what, " cannot be read: ", error.what(),
                                            "; restore the state directory"));
  }
}

}  // namespace

std::string EncodeDefinition(const JobDefinition& definition) {
  Json json = {{"job_id", definition.job_id.value()}, {"spec_digest", definition.spec_digest}};
  Put(json, "request_id", definition.request_id);
  Put(json, "name", definition.name);
  Put(json, "team", definition.team);
  Put(json, "queue", definition.queue);
  Put(json, "priority", definition.priority);
  PutTime(json, "created", definition.created);
  if (definition.max_runtime != absl::InfiniteDuration()) {
    json["max_runtime_ms"] = absl::ToInt64Milliseconds(definition.max_runtime);
  }
  const JobRequirements& requirements = definition.requirements;
  Put(json, "ranks", requirements.ranks);
  Put(json, "min_ranks", requirements.min_ranks);
  Put(json, "max_ranks", requirements.max_ranks);
  Put(json, "device_kind", requirements.device_kind);
  Put(json, "min_memory_bytes", requirements.min_memory_bytes);
  Put(json, "gpu_models", requirements.gpu_models);
  Put(json, "labels", requirements.labels);
  Put(json, "exchange_artifacts", requirements.exchange_artifacts);
  return Dump(json);
}

absl::StatusOr<JobDefinition> DecodeDefinition(absl::string_view text) {
  JobDefinition definition;
  absl::Status status = Decode("job definition", text, [&](const Json& json) {
    GetId(json, "job_id", definition.job_id);
    Get(json, "spec_digest", definition.spec_digest);
    Get(json, "request_id", definition.request_id);
    Get(json, "name", definition.name);
    Get(json, "team", definition.team);
    Get(json, "queue", definition.queue);
    Get(json, "priority", definition.priority);
    definition.created = GetTime(json, "created");
    if (json.contains("max_runtime_ms")) {
      definition.max_runtime = absl::Milliseconds(json.at("max_runtime_ms").get<std::int64_t>());
    }
    JobRequirements& requirements = definition.requirements;
    Get(json, "ranks", requirements.ranks);
    Get(json, "min_ranks", requirements.min_ranks);
    Get(json, "max_ranks", requirements.max_ranks);
    Get(json, "device_kind", requirements.device_kind);
    Get(json, "min_memory_bytes", requirements.min_memory_bytes);
    Get(json, "gpu_models", requirements.gpu_models);
    Get(json, "labels", requirements.labels);
    Get(json, "exchange_artifacts", requirements.exchange_artifacts);
  });
  if (!status.ok()) return status;
  return definition;
}

std::string EncodeJob(const JobRecord& job) {
  Json json = {{"state", static_cast<int>(job.state)}, {"last_sequence", job.last_sequence}};
  Put(json, "reason_code", job.reason_code);
  Put(json, "message", job.message);
  Put(json, "culprit", job.culprit);
  Put(json, "log_tail", job.log_tail);
  Put(json, "preflighted", job.preflighted);
  if (job.memory != nullptr) json["memory"] = FormatMemoryNeeds(*job.memory);
  Put(json, "stop_intent", static_cast<int>(job.stop_intent));
  Put(json, "failures", job.failures);
  PutTime(json, "not_before", job.not_before);
  PutTime(json, "started", job.started);
  PutTime(json, "finished", job.finished);
  Put(json, "total_steps", job.total_steps);
  if (job.progress.total_steps != 0) json["progress"] = ProgressToJson(job.progress);
  if (job.checkpoint) {
    json["checkpoint"] = {{"step", job.checkpoint->step},
                          {"attempt", job.checkpoint->attempt},
                          {"files", FilesToJson(job.checkpoint->files)}};
  }
  if (job.result) {
    Json result = {{"attempt", job.result->attempt}, {"files", FilesToJson(job.result->files)}};
    PutOptional(result, "base_eval_loss", job.result->base_eval_loss);
    PutOptional(result, "eval_loss", job.result->eval_loss);
    json["result"] = std::move(result);
  }
  Put(json, "derivative_id", job.derivative_id);
  if (!job.attempts.empty()) {
    Json attempts = Json::array();
    for (const AttemptRecord& attempt : job.attempts) attempts.push_back(AttemptToJson(attempt));
    json["attempts"] = std::move(attempts);
  }
  return Dump(json);
}

absl::Status DecodeJob(absl::string_view text, JobRecord* job) {
  return Decode("job record", text, [&](const Json& json) {
    job->state = static_cast<JobState>(json.at("state").get<int>());
    Get(json, "last_sequence", job->last_sequence);
    Get(json, "reason_code", job->reason_code);
    Get(json, "message", job->message);
    Get(json, "culprit", job->culprit);
    Get(json, "log_tail", job->log_tail);
    Get(json, "preflighted", job->preflighted);
    std::string memory;
    Get(json, "memory", memory);
    if (!memory.empty()) {
      job->memory = std::make_shared<const MemoryNeeds>(ParseMemoryNeeds(memory));
    }
    int stop_intent = 0;
    Get(json, "stop_intent", stop_intent);
    job->stop_intent = static_cast<StopIntent>(stop_intent);
    Get(json, "failures", job->failures);
    job->not_before = GetTime(json, "not_before");
    job->started = GetTime(json, "started");
    job->finished = GetTime(json, "finished");
    Get(json, "total_steps", job->total_steps);
    if (json.contains("progress")) job->progress = ProgressFromJson(json.at("progress"));
    if (json.contains("checkpoint")) {
      const Json& from = json.at("checkpoint");
      job->checkpoint =
          CheckpointRecord{from.at("step").get<std::int64_t>(),
                           from.at("attempt").get<std::int32_t>(), FilesFromJson(from, "files")};
    }
    if (json.contains("result")) {
      const Json& from = json.at("result");
      ResultRecord result;
      result.attempt = from.at("attempt").get<std::int32_t>();
      result.files = FilesFromJson(from, "files");
      GetOptional(from, "base_eval_loss", result.base_eval_loss);
      GetOptional(from, "eval_loss", result.eval_loss);
      job->result = std::move(result);
    }
    Get(json, "derivative_id", job->derivative_id);
    if (json.contains("attempts")) {
      for (const Json& attempt : json.at("attempts")) {
        job->attempts.push_back(AttemptFromJson(attempt));
      }
    }
  });
}

std::string EncodeInputs(const JobInputs& inputs) {
  Json list = Json::array();
  for (const InputRecord& input : inputs.inputs) {
    list.push_back({{"spec_pointer", input.spec_pointer},
                    {"files", FilesToJson(input.files)},
                    {"shared_path", input.shared_path},
                    {"digest", input.digest},
                    {"hub_repository", input.hub_repository},
                    {"hub_commit", input.hub_commit}});
  }
  return Dump({{"inputs", std::move(list)}, {"preflight_key", inputs.preflight_key}});
}

absl::StatusOr<JobInputs> DecodeInputs(absl::string_view text) {
  JobInputs inputs;
  absl::Status status = Decode("job inputs", text, [&](const Json& json) {
    for (const Json& from : json.at("inputs")) {
      InputRecord input;
      Get(from, "spec_pointer", input.spec_pointer);
      input.files = FilesFromJson(from, "files");
      Get(from, "shared_path", input.shared_path);
      Get(from, "digest", input.digest);
      Get(from, "hub_repository", input.hub_repository);
      Get(from, "hub_commit", input.hub_commit);
      inputs.inputs.push_back(std::move(input));
    }
    Get(json, "preflight_key", inputs.preflight_key);
  });
  if (!status.ok()) return status;
  return inputs;
}

std::string EncodeEvent(const JobEventRecord& event) {
  Json json = {{"state", static_cast<int>(event.state)}, {"type", event.type}};
  PutTime(json, "time", event.time);
  Put(json, "attempt", event.attempt);
  Put(json, "reason_code", event.reason_code);
  Put(json, "message", event.message);
  Put(json, "step", event.step);
  return Dump(json);
}

absl::Status DecodeEvent(absl::string_view text, JobEventRecord* event) {
  return Decode("job event", text, [&](const Json& json) {
    event->state = static_cast<JobState>(json.at("state").get<int>());
    Get(json, "type", event->type);
    event->time = GetTime(json, "time");
    Get(json, "attempt", event->attempt);
    Get(json, "reason_code", event->reason_code);
    Get(json, "message", event->message);
    Get(json, "step", event->step);
  });
}

std::string EncodeEffect(const Effect& effect) {
  Json json = {{"kind", static_cast<int>(effect.kind)}, {"job_id", effect.job_id.value()}};
  Put(json, "attempt", effect.attempt);
  Put(json, "checkpoint", effect.checkpoint);
  Put(json, "reason_code", effect.reason_code);
  return Dump(json);
}

absl::StatusOr<Effect> DecodeEffect(absl::string_view text) {
  Effect effect;
  absl::Status status = Decode("effect", text, [&](const Json& json) {
    effect.kind = static_cast<EffectKind>(json.at("kind").get<int>());
    GetId(json, "job_id", effect.job_id);
    Get(json, "attempt", effect.attempt);
    Get(json, "checkpoint", effect.checkpoint);
    Get(json, "reason_code", effect.reason_code);
  });
  if (!status.ok()) return status;
  return effect;
}

std::string EncodeWorker(const WorkerRecord& worker) {
  Json devices = Json::array();
  for (const DeviceRecord& device : worker.devices) {
    devices.push_back({{"device_id", device.device_id},
                       {"kind", device.kind},
                       {"threads", device.threads},
                       {"memory_bytes", device.memory_bytes},
                       {"model", device.model},
                       {"driver_version", device.driver_version},
                       {"speed", device.speed}});
  }
  Json json = {{"worker_id", worker.worker_id.value()},
               {"incarnation_id", worker.incarnation_id.value()},
               {"devices", std::move(devices)}};
  Put(json, "name", worker.name);
  Put(json, "version", worker.version);
  Put(json, "hostname", worker.hostname);
  Put(json, "cpu_model", worker.cpu_model);
  Put(json, "cpu_cores", worker.cpu_cores);
  Put(json, "memory_bytes", worker.memory_bytes);
  Put(json, "bf16", worker.bf16);
  Put(json, "boot_id", worker.boot_id);
  Put(json, "address", worker.address);
  Put(json, "instruction_sets", worker.instruction_sets);
  Put(json, "labels", worker.labels);
  Put(json, "taints", worker.taints);
  Put(json, "draining", worker.draining);
  return Dump(json);
}

absl::StatusOr<WorkerRecord> DecodeWorker(absl::string_view text) {
  WorkerRecord worker;
  absl::Status status = Decode("worker", text, [&](const Json& json) {
    GetId(json, "worker_id", worker.worker_id);
    GetId(json, "incarnation_id", worker.incarnation_id);
    Get(json, "name", worker.name);
    Get(json, "version", worker.version);
    Get(json, "hostname", worker.hostname);
    Get(json, "cpu_model", worker.cpu_model);
    Get(json, "cpu_cores", worker.cpu_cores);
    Get(json, "memory_bytes", worker.memory_bytes);
    Get(json, "bf16", worker.bf16);
    Get(json, "boot_id", worker.boot_id);
    Get(json, "address", worker.address);
    Get(json, "instruction_sets", worker.instruction_sets);
    Get(json, "labels", worker.labels);
    Get(json, "taints", worker.taints);
    Get(json, "draining", worker.draining);
    for (const Json& from : json.at("devices")) {
      DeviceRecord device;
      Get(from, "device_id", device.device_id);
      Get(from, "kind", device.kind);
      Get(from, "threads", device.threads);
      Get(from, "memory_bytes", device.memory_bytes);
      Get(from, "model", device.model);
      Get(from, "driver_version", device.driver_version);
      Get(from, "speed", device.speed);
      worker.devices.push_back(std::move(device));
    }
  });
  if (!status.ok()) return status;
  return worker;
}

std::string EncodeBaseModel(const BaseModelRecord& model) {
  Json json = {{"name", model.name}, {"digest", model.digest}, {"files", FilesToJson(model.files)}};
  Put(json, "base_model_id", model.base_model_id);
  Put(json, "license", model.license);
  Put(json, "path", model.path);
  Put(json, "team", model.team);
  PutTime(json, "created", model.created);
  return Dump(json);
}

absl::StatusOr<BaseModelRecord> DecodeBaseModel(absl::string_view text) {
  BaseModelRecord model;
  absl::Status status = Decode("base model", text, [&](const Json& json) {
    Get(json, "name", model.name);
    Get(json, "digest", model.digest);
    model.files = FilesFromJson(json, "files");
    Get(json, "base_model_id", model.base_model_id);
    Get(json, "license", model.license);
    Get(json, "path", model.path);
    Get(json, "team", model.team);
    model.created = GetTime(json, "created");
  });
  if (!status.ok()) return status;
  return model;
}

std::string EncodeDerivative(const DerivativeRecord& derivative) {
  Json json = {{"derivative_id", derivative.derivative_id.value()},
               {"job_id", derivative.job_id.value()},
               {"digest", derivative.digest},
               {"files", FilesToJson(derivative.files)}};
  Put(json, "name", derivative.name);
  Put(json, "team", derivative.team);
  Put(json, "base_model_id", derivative.base_model_id);
  Put(json, "base_model_digest", derivative.base_model_digest);
  PutOptional(json, "base_eval_loss", derivative.base_eval_loss);
  PutOptional(json, "eval_loss", derivative.eval_loss);
  PutTime(json, "created", derivative.created);
  return Dump(json);
}

absl::StatusOr<DerivativeRecord> DecodeDerivative(absl::string_view text) {
  DerivativeRecord derivative;
  absl::Status status = Decode("derivative", text, [&](const Json& json) {
    GetId(json, "derivative_id", derivative.derivative_id);
    GetId(json, "job_id", derivative.job_id);
    Get(json, "digest", derivative.digest);
    derivative.files = FilesFromJson(json, "files");
    Get(json, "name", derivative.name);
    Get(json, "team", derivative.team);
    Get(json, "base_model_id", derivative.base_model_id);
    Get(json, "base_model_digest", derivative.base_model_digest);
    GetOptional(json, "base_eval_loss", derivative.base_eval_loss);
    GetOptional(json, "eval_loss", derivative.eval_loss);
    derivative.created = GetTime(json, "created");
  });
  if (!status.ok()) return status;
  return derivative;
}

}  // namespace offshoot
