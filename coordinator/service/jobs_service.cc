#include "coordinator/service/jobs_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/ids.h"
#include "common/status_macros.h"
#include "coordinator/service/convert.h"
#include "coordinator/service/job_streams.h"
#include "coordinator/service/refusal.h"
#include "coordinator/service/replies.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxRequestIdBytes = 128;
constexpr std::size_t kMaxReasonBytes = 1024;
constexpr std::size_t kMaxCheckedSpecs = 64;

JobDefinition MakeDefinition(const v1::SubmitJobRequest& request, const CheckedSpec& checked,
                             absl::Time now) {
  const JobSpec& spec = *checked.spec;
  JobDefinition definition;
  definition.job_id = JobId(MakeSortableId("job-", absl::ToUnixMillis(now)));
  definition.request_id = request.request_id();
  definition.name = spec.name.empty() ? definition.job_id.value() : spec.name;
  definition.team = spec.team;
  definition.queue = spec.queue;
  definition.priority = static_cast<int>(spec.priority);
  definition.spec_yaml = request.spec_yaml();
  definition.spec_digest = checked.digest;
  definition.created = now;
  if (spec.max_runtime_seconds > 0) {
    definition.max_runtime = absl::Seconds(spec.max_runtime_seconds);
  }
  JobRequirements& requirements = definition.requirements;
  requirements.ranks = static_cast<int>(spec.resources.ranks);
  requirements.min_ranks = static_cast<int>(spec.resources.min_ranks);
  requirements.max_ranks = static_cast<int>(spec.resources.max_ranks);
  requirements.gpu_models = spec.resources.gpu_models;
  requirements.labels = spec.resources.labels;
  if (spec.resources.device != "any") requirements.device_kind = spec.resources.device;
  requirements.min_memory_bytes = spec.resources.min_memory_bytes;
  requirements.exchange_artifacts = spec.sync.local_steps > 0;
  definition.spec = checked.spec;
  return definition;
}

// The job an earlier call with this request id made, whatever has become of its files since.
absl::StatusOr<std::optional<JobId>> FindFirst(Store& store, const v1::SubmitJobRequest& request,
                                               const std::string& spec_digest) {
  if (request.request_id().empty()) return std::nullopt;
  ASSIGN_OR_RETURN(std::optional<JobRecord> first, store.FindRequest(request.request_id()));
  if (!first) return std::nullopt;
  if (first->definition->spec_digest != spec_digest) {
    return absl::AlreadyExistsError(absl::StrCat("request_id '", request.request_id(),
                                                 "' was used for job ", first->id().value(),
                                                 " with another spec; choose another request_id"));
  }
  return first->id();
}

}  // namespace

absl::StatusOr<CheckedSpec> JobsService::CheckSpec(const std::string& yaml) {
  {
    absl::MutexLock lock(&mutex_);
    const auto known = checked_.find(yaml);
    if (known != checked_.end()) return known->second;
  }
  absl::StatusOr<JobSpec> spec = ParseJobSpec(yaml);
  if (!spec.ok()) return spec.status();
  CheckedSpec checked;
  checked.digest = SpecDigest(*spec);
  checked.spec = std::make_shared<const JobSpec>(*std::move(spec));
  absl::MutexLock lock(&mutex_);
  if (checked_.size() >= kMaxCheckedSpecs) checked_.clear();
  checked_[yaml] = checked;
  return checked;
}

absl::Status JobsService::MayUse(const grpc::CallbackServerContext& call,
                                 const std::string& job_id) {
  const absl::StatusOr<Caller> caller = Require(context_, call, Right::kUse);
  if (!caller.ok()) return caller.status();
  if (!caller->confined()) return absl::OkStatus();
  const absl::StatusOr<JobRecord> job = context_.store.GetJob(JobId(job_id));
  if (!job.ok()) return job.status();
  return CheckTeam(*caller, job->definition->team, "the job");
}

grpc::ServerUnaryReactor* JobsService::SubmitJob(grpc::CallbackServerContext* call,
                                                 const v1::SubmitJobRequest* request,
                                                 v1::SubmitJobResponse* response) {
  context_.counters.jobs += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  if (!caller.ok()) return Finish(call, caller.status());
  if (request->request_id().size() > kMaxRequestIdBytes) {
    return Finish(call, absl::InvalidArgumentError(
                            absl::StrCat("request_id has ", request->request_id().size(),
                                         " bytes; at most ", kMaxRequestIdBytes, " are allowed")));
  }
  const absl::StatusOr<CheckedSpec> spec = CheckSpec(request->spec_yaml());
  if (!spec.ok()) return Finish(call, spec.status());
  if (absl::Status known = context_.controller.CheckQueue(spec->spec->queue); !known.ok()) {
    return Finish(call, known);
  }
  for (const std::string& name : {spec->spec->base_model, spec->spec->init_adapter}) {
    if (!caller->confined() || name.empty()) continue;
    // Who may not fetch it may not train on it.
    const absl::StatusOr<BaseModelRecord> model = context_.store.GetBaseModel(name);
    const absl::StatusOr<DerivativeRecord> derivative =
        context_.store.GetDerivative(DerivativeId(name));
    const std::string team = derivative.ok() ? derivative->team : model.ok() ? model->team : "";
    if (team.empty()) continue;
    if (absl::Status ours = CheckTeam(*caller, team, absl::StrCat("the model ", name));
        !ours.ok()) {
      return Finish(call, ours);
    }
  }
  JobDefinition definition = MakeDefinition(*request, *spec, context_.clock.Now());
  // Quotas and shares follow the token's team, whatever the job file says.
  if (caller->asked) definition.team = caller->team;
  absl::StatusOr<std::optional<ResolvedInputs>> inputs =
      context_.resolver.TryResolve(definition.spec);
  if (!inputs.ok()) {
    // The controller knows a repeat by itself; here only one whose files have gone since.
    const absl::StatusOr<std::optional<JobId>> first =
        FindFirst(context_.store, *request, definition.spec_digest);
    if (first.ok() && first->has_value()) response->set_job_id((*first)->value());
    if (first.ok() && !first->has_value()) return Finish(call, inputs.status());
    return Finish(call, first.status());
  }
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context_.controller.SubmitJob(std::move(definition), *std::move(inputs),
                                [reactor, response](absl::StatusOr<JobId> job_id) {
                                  if (job_id.ok()) response->set_job_id(job_id->value());
                                  reactor->Finish(ToGrpcStatus(job_id.status()));
                                });
  return reactor;
}

grpc::ServerUnaryReactor* JobsService::GetJob(grpc::CallbackServerContext* call,
                                              const v1::GetJobRequest* request, v1::Job* response) {
  context_.counters.jobs += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  if (!caller.ok()) return Finish(call, caller.status());
  const JobId job_id(request->job_id());
  absl::StatusOr<JobRecord> job = context_.store.GetJob(job_id);
  if (job.ok()) {
    const absl::Status ours = CheckTeam(*caller, job->definition->team, "the job");
    if (!ours.ok()) job = ours;
  }
  if (job.ok()) *response = ToProto(*job, context_.controller.Overlay(job_id), /*whole=*/true);
  return Finish(call, job.status());
}

grpc::ServerUnaryReactor* JobsService::ListJobs(grpc::CallbackServerContext* call,
                                                const v1::ListJobsRequest* request,
                                                v1::ListJobsResponse* response) {
  context_.counters.jobs += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  if (!caller.ok()) return Finish(call, caller.status());
  const absl::StatusOr<int> page = PageSize(request->page_size());
  if (!page.ok()) return Finish(call, page.status());
  JobFilter filter;
  for (const int state : request->states()) {
    if (state < 1 || state > kJobStateCount) {
      return Finish(call, absl::InvalidArgumentError(
                              absl::StrCat(state, " is not a state of a job (1 to 9)")));
    }
    filter.states.push_back(static_cast<JobState>(state));
  }
  filter.team = caller->confined() ? caller->team : request->team();
  filter.name_contains = request->name_contains();
  filter.before = JobId(request->page_token());
  filter.limit = *page + 1;
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context_.pool.Post([this, filter = std::move(filter), page = *page, response, reactor] {
    const absl::StatusOr<std::vector<JobRecord>> jobs = context_.store.ListJobs(filter);
    if (jobs.ok()) {
      for (const JobRecord& job : *jobs) {
        if (response->jobs_size() == page) {
          response->set_next_page_token(response->jobs(page - 1).job_id());
          break;
        }
        *response->add_jobs() = ToProto(job, context_.controller.Overlay(job.id()), false);
      }
    }
    reactor->Finish(ToGrpcStatus(jobs.status()));
  });
  return reactor;
}

grpc::ServerWriteReactor<v1::JobEvent>* JobsService::WatchJob(grpc::CallbackServerContext* call,
                                                              const v1::WatchJobRequest* request) {
  context_.counters.jobs += 1;
  if (absl::Status allowed = MayUse(*call, request->job_id()); !allowed.ok()) {
    return Refusal<grpc::ServerWriteReactor<v1::JobEvent>>::Start(allowed);
  }
  return StartWatch(context_, *request);
}

grpc::ServerWriteReactor<v1::LogChunk>* JobsService::StreamLogs(
    grpc::CallbackServerContext* call, const v1::StreamLogsRequest* request) {
  context_.counters.jobs += 1;
  if (absl::Status allowed = MayUse(*call, request->job_id()); !allowed.ok()) {
    return Refusal<grpc::ServerWriteReactor<v1::LogChunk>>::Start(allowed);
  }
  return StartLogs(context_, *request);
}

grpc::ServerWriteReactor<v1::StepMetrics>* JobsService::StreamMetrics(
    grpc::CallbackServerContext* call, const v1::StreamMetricsRequest* request) {
  context_.counters.jobs += 1;
  if (absl::Status allowed = MayUse(*call, request->job_id()); !allowed.ok()) {
    return Refusal<grpc::ServerWriteReactor<v1::StepMetrics>>::Start(allowed);
  }
  return StartMetrics(context_, *request);
}

grpc::ServerUnaryReactor* JobsService::Change(grpc::CallbackServerContext* call,
                                              const std::string& job_id, LifecycleEvent event,
                                              v1::Job* response) {
  context_.counters.jobs += 1;
  if (absl::Status allowed = MayUse(*call, job_id); !allowed.ok()) return Finish(call, allowed);
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  const JobId id(job_id);
  context_.controller.ChangeJob(
      id, std::move(event), [this, id, response, reactor](const absl::Status& changed) {
        if (!changed.ok()) {
          reactor->Finish(ToGrpcStatus(changed));
          return;
        }
        // Off the loop: the answer is read from the store.
        context_.pool.Post([this, id, response, reactor] {
          const absl::StatusOr<JobRecord> job = context_.store.GetJob(id);
          if (job.ok()) *response = ToProto(*job, context_.controller.Overlay(id), false);
          reactor->Finish(ToGrpcStatus(job.status()));
        });
      });
  return reactor;
}

grpc::ServerUnaryReactor* JobsService::CancelJob(grpc::CallbackServerContext* call,
                                                 const v1::CancelJobRequest* request,
                                                 v1::Job* response) {
  return Change(call, request->job_id(),
                CancelRequested{request->reason().substr(0, kMaxReasonBytes)}, response);
}

grpc::ServerUnaryReactor* JobsService::PauseJob(grpc::CallbackServerContext* call,
                                                const v1::PauseJobRequest* request,
                                                v1::Job* response) {
  return Change(call, request->job_id(), PauseRequested{}, response);
}

grpc::ServerUnaryReactor* JobsService::ResumeJob(grpc::CallbackServerContext* call,
                                                 const v1::ResumeJobRequest* request,
                                                 v1::Job* response) {
  return Change(call, request->job_id(), ResumeRequested{}, response);
}

}  // namespace offshoot
