#include "coordinator/service/models_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "coordinator/service/convert.h"
#include "coordinator/service/refusal.h"
#include "coordinator/service/replies.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxModelNameBytes = 200;

absl::Status CheckModelName(const std::string& name) {
  const bool good = !name.empty() && name.size() <= kMaxModelNameBytes &&
                    absl::ascii_isalnum(static_cast<unsigned char>(name.front())) &&
                    std::all_of(name.begin(), name.end(), [](unsigned char c) {
                      return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-' || c == '/';
                    });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a base model's name has 1 to ", kMaxModelNameBytes,
                   " letters, digits, '.', '_', '-' or '/' and begins with a letter or digit"));
}

// What a team pushed is its own.
bool IsSeenBy(const Caller& caller, const BaseModelRecord& model) {
  return model.team.empty() || CheckTeam(caller, model.team, "").ok();
}

absl::StatusOr<BaseModelRecord> Describe(const ServiceContext& context,
                                         const v1::RegisterBaseModelRequest& request,
                                         std::vector<FileDigest>* learned) {
  RETURN_IF_ERROR(CheckModelName(request.name()));
  BaseModelRecord model;
  model.name = request.name();
  model.base_model_id = request.base_model_id().substr(0, kMaxModelNameBytes);
  model.license = request.license().substr(0, kMaxModelNameBytes);
  model.path = request.path();
  if (request.path().empty() == (request.files_size() == 0)) {
    return absl::InvalidArgumentError(
        "a base model is given by a path or by uploaded files: one of"
        " the two");
  }
  if (!request.path().empty()) {
    ASSIGN_OR_RETURN(model.files, context.resolver.DescribeModelPath(request.path(), learned));
  } else {
    ASSIGN_OR_RETURN(model.files, FilesFromProto(request.files()));
    std::string missing;
    if (!context.artifacts.HasAll(model.files, &missing)) {
      return absl::FailedPreconditionError(
          absl::StrCat("the file ", missing,
                       " was not uploaded, or has another size; upload it"
                       " first"));
    }
  }
  const bool plain = model.files.size() == 1 && model.files.front().path.empty();
  model.digest = plain ? model.files.front().digest : DigestOfFiles(model.files);
  return model;
}

}  // namespace

grpc::ServerUnaryReactor* ModelsService::RegisterBaseModel(
    grpc::CallbackServerContext* call, const v1::RegisterBaseModelRequest* request,
    v1::BaseModel* response) {
  context_.counters.models += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kOperate);
  if (!caller.ok()) return Finish(call, caller.status());
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context_.pool.Post([this, request, response, reactor] {
    std::vector<FileDigest> learned;
    absl::StatusOr<BaseModelRecord> model = Describe(context_, *request, &learned);
    if (!model.ok()) {
      reactor->Finish(ToGrpcStatus(model.status()));
      return;
    }
    const std::string name = model->name;
    context_.controller.RegisterBaseModel(
        *std::move(model), std::move(learned),
        [this, name, response, reactor](const absl::Status& status) {
          const absl::StatusOr<BaseModelRecord> stored =
              status.ok() ? context_.store.GetBaseModel(name)
                          : absl::StatusOr<BaseModelRecord>(status);
          if (stored.ok()) *response = ToProto(*stored);
          reactor->Finish(ToGrpcStatus(stored.status()));
        });
  });
  return reactor;
}

grpc::ServerUnaryReactor* ModelsService::ListBaseModels(grpc::CallbackServerContext* call,
                                                        const v1::ListBaseModelsRequest* request,
                                                        v1::ListBaseModelsResponse* response) {
  context_.counters.models += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  if (!caller.ok()) return Finish(call, caller.status());
  const absl::StatusOr<int> page = PageSize(request->page_size());
  if (!page.ok()) return Finish(call, page.status());
  const auto models = context_.store.ListBaseModels(request->page_token(), *page + 1);
  if (!models.ok()) return Finish(call, models.status());
  const std::size_t shown = std::min(models->size(), static_cast<std::size_t>(*page));
  for (std::size_t i = 0; i < shown; ++i) {
    const BaseModelRecord& model = (*models)[i];
    // Revisions of what was pushed, and what other teams pushed, are not listed.
    if (absl::StrContains(model.name, '@') || !IsSeenBy(*caller, model)) continue;
    *response->add_base_models() = ToProto(model);
  }
  if (models->size() > shown) response->set_next_page_token((*models)[shown - 1].name);
  return Finish(call, absl::OkStatus());
}

grpc::ServerUnaryReactor* ModelsService::GetBaseModel(grpc::CallbackServerContext* call,
                                                      const v1::GetBaseModelRequest* request,
                                                      v1::BaseModel* response) {
  context_.counters.models += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  if (!caller.ok()) return Finish(call, caller.status());
  absl::StatusOr<BaseModelRecord> model = context_.store.GetBaseModel(request->name());
  if (model.ok() && !IsSeenBy(*caller, *model)) {
    model = CheckTeam(*caller, model->team, absl::StrCat("the base model ", request->name()));
  }
  if (model.ok()) *response = ToProto(*model);
  return Finish(call, model.status());
}

grpc::ServerUnaryReactor* ModelsService::ListDerivatives(grpc::CallbackServerContext* call,
                                                         const v1::ListDerivativesRequest* request,
                                                         v1::ListDerivativesResponse* response) {
  context_.counters.models += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  if (!caller.ok()) return Finish(call, caller.status());
  const absl::StatusOr<int> page = PageSize(request->page_size());
  if (!page.ok()) return Finish(call, page.status());
  DerivativeFilter filter;
  filter.base_model_digest = request->base_model_digest();
  filter.team = caller->confined() ? caller->team : request->team();
  filter.before = DerivativeId(request->page_token());
  filter.limit = *page + 1;
  const auto derivatives = context_.store.ListDerivatives(filter);
  if (!derivatives.ok()) return Finish(call, derivatives.status());
  for (const DerivativeRecord& derivative : *derivatives) {
    if (response->derivatives_size() == *page) {
      response->set_next_page_token(response->derivatives(*page - 1).derivative_id());
      break;
    }
    *response->add_derivatives() = ToProto(derivative);
  }
  return Finish(call, absl::OkStatus());
}

grpc::ServerUnaryReactor* ModelsService::GetDerivative(grpc::CallbackServerContext* call,
                                                       const v1::GetDerivativeRequest* request,
                                                       v1::Derivative* response) {
  context_.counters.models += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  if (!caller.ok()) return Finish(call, caller.status());
  absl::StatusOr<DerivativeRecord> derivative =
      context_.store.GetDerivative(DerivativeId(request->derivative_id()));
  if (derivative.ok()) {
    const absl::Status ours = CheckTeam(*caller, derivative->team, "the derivative");
    if (!ours.ok()) derivative = ours;
  }
  if (derivative.ok()) {
    *response = ToProto(*derivative);
    if (context_.pusher != nullptr) {
      for (const PushOutcome& outcome : context_.pusher->Outcomes(derivative->derivative_id)) {
        v1::Push* push = response->add_pushes();
        push->set_target(outcome.target);
        push->set_state(outcome.state);
        push->set_message(outcome.message);
        push->set_commit(outcome.commit);
        push->set_tries(outcome.tries);
      }
    }
  }
  return Finish(call, derivative.status());
}

grpc::ServerWriteReactor<v1::FileChunk>* ModelsService::DownloadFile(
    grpc::CallbackServerContext* call, const v1::DownloadFileRequest* request) {
  context_.counters.models += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  absl::Status allowed = caller.status();
  if (caller.ok() && caller->confined()) {
    const auto derivative = context_.store.GetDerivative(DerivativeId(request->derivative_id()));
    allowed = derivative.ok() ? CheckTeam(*caller, derivative->team, "the derivative")
                              : derivative.status();
  }
  if (!allowed.ok()) return Refusal<grpc::ServerWriteReactor<v1::FileChunk>>::Start(allowed);
  return StartFileDownload(context_, *request);
}

}  // namespace offshoot
