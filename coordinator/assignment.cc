#include "coordinator/assignment.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/trainer_spec.h"

namespace offshoot {
namespace {

// The worker replaces it by a path of its own.
ResolvedInput PlaceholderFor(const InputRecord& input) {
  return ResolvedInput{input.shared_path.empty() ? input.digest : input.shared_path, input.digest,
                       input.hub_repository, input.hub_commit};
}

}  // namespace

absl::StatusOr<std::shared_ptr<const JobSpec>> SpecOf(const JobDefinition& definition) {
  if (definition.spec != nullptr) return definition.spec;
  ASSIGN_OR_RETURN(JobSpec spec, ParseJobSpec(definition.spec_yaml));
  return std::make_shared<const JobSpec>(std::move(spec));
}

absl::StatusOr<AssignMessage> BuildAssignment(const JobRecord& job, WorkKind kind,
                                              const WorkerRecord& worker,
                                              const std::string& coordinator_version) {
  ASSIGN_OR_RETURN(std::shared_ptr<const JobSpec> spec, SpecOf(*job.definition));
  const std::vector<InputRecord>& inputs = job.inputs->inputs;
  AssignMessage message;
  message.job_id = job.id();
  message.kind = kind;
  message.inputs = job.inputs;
  message.job_created = job.definition->created;
  TrainerSpecContext context;
  context.job_id = job.id();
  context.base_model = PlaceholderFor(inputs.front());
  for (std::size_t i = 0; i < spec->datasets.size(); ++i) {
    context.datasets.push_back(PlaceholderFor(inputs[1 + i]));
  }
  if (!spec->init_adapter.empty()) context.init_adapter = PlaceholderFor(inputs.back());
  context.spec_yaml = job.definition->spec_yaml;
  context.coordinator_version = coordinator_version;
  if (kind == WorkKind::kTrain) {
    const AttemptRecord& attempt = job.attempts.back();
    message.attempt = attempt.number;
    const GangMember* member = attempt.MemberOn(worker.worker_id);
    if (member == nullptr) {
      return absl::InternalError(absl::StrCat("worker ", worker.name, " has no rank of attempt ",
                                              attempt.number, " of ", job.id().value()));
    }
    message.device_ids = member->devices;
    message.first_rank = member->first_rank;
    message.world_size = attempt.world_size();
    message.lease_id = attempt.lease_id;
    message.exchange_artifacts =
        attempt.members.size() > 1 && job.definition->requirements.exchange_artifacts;
    message.resume_from = job.checkpoint;
    context.attempt = AttemptNumber(attempt.number);
    for (const AttemptRecord& other : job.attempts) {
      if (other.number == attempt.number) continue;
      context.attempts.push_back(
          AttemptLineage{other.number, other.WorkerNames(), other.first_step, other.last_step});
    }
    if (job.checkpoint) context.resume_from = "checkpoint";
    const auto device =
        std::find_if(worker.devices.begin(), worker.devices.end(),
                     [&](const DeviceRecord& d) { return d.device_id == member->devices.front(); });
    if (device != worker.devices.end()) {
      context.device = device->kind == "cpu" ? "cpu" : device->device_id;
      context.threads = device->threads;
    }
  }
  message.trainer_spec_json = TrainerSpecJson(*spec, context);
  return message;
}

}  // namespace offshoot
