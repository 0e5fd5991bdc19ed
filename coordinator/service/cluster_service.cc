#include "coordinator/service/cluster_service.h"

#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "coordinator/service/convert.h"
#include "coordinator/service/refusal.h"
#include "coordinator/service/replies.h"

namespace offshoot {
namespace {

absl::Status CheckDigest(const std::string& digest) {
  if (IsDigest(digest)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("'", digest.substr(0, 80), "' is no digest; write sha256:<64 hex digits>"));
}

auto AnswerWorker(grpc::ServerUnaryReactor* reactor, v1::Worker* response) {
  return [reactor, response](const absl::StatusOr<WorkerStatus>& worker) {
    if (worker.ok()) *response = ToProto(*worker);
    reactor->Finish(ToGrpcStatus(worker.status()));
  };
}

}  // namespace

SessionReactor* ClusterService::Session(grpc::CallbackServerContext* call) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kServe);
  if (!caller.ok()) return Refusal<SessionReactor>::Start(caller.status());
  return StartSession(context_, *caller);
}

grpc::ServerUnaryReactor* ClusterService::GetArtifactLocations(
    grpc::CallbackServerContext* call, const v1::GetArtifactLocationsRequest* request,
    v1::GetArtifactLocationsResponse* response) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kTransfer);
  if (!caller.ok()) return Finish(call, caller.status());
  if (absl::Status status = CheckDigest(request->digest()); !status.ok()) {
    return Finish(call, status);
  }
  std::string path;
  if (const auto size = context_.artifacts.Find(request->digest())) {
    path = context_.artifacts.PathOf(request->digest());
    response->set_size_bytes(*size);
  } else if (const auto known = context_.resolver.FindKnownFile(request->digest())) {
    path = *known;
    std::error_code ignored;
    response->set_size_bytes(static_cast<std::int64_t>(std::filesystem::file_size(path, ignored)));
  } else {
    return Finish(call,
                  absl::NotFoundError(absl::StrCat("nobody has the artifact ", request->digest())));
  }
  response->add_locations()->set_uri(absl::StrCat("file://", path));
  response->add_locations()->set_uri("grpc:");
  return Finish(call, absl::OkStatus());
}

grpc::ServerReadReactor<v1::UploadArtifactRequest>* ClusterService::UploadArtifact(
    grpc::CallbackServerContext* call, v1::UploadArtifactResponse* response) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kTransfer);
  if (!caller.ok()) {
    return Refusal<grpc::ServerReadReactor<v1::UploadArtifactRequest>>::Start(caller.status());
  }
  return StartUpload(context_, response);
}

grpc::ServerUnaryReactor* ClusterService::GetUploadOffset(grpc::CallbackServerContext* call,
                                                          const v1::GetUploadOffsetRequest* request,
                                                          v1::GetUploadOffsetResponse* response) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kTransfer);
  if (!caller.ok()) return Finish(call, caller.status());
  if (absl::Status status = CheckDigest(request->digest()); !status.ok()) {
    return Finish(call, status);
  }
  if (const auto size = context_.artifacts.Find(request->digest())) {
    response->set_offset(*size);
    response->set_complete(true);
  } else {
    response->set_offset(context_.artifacts.PartSize(request->digest()));
  }
  return Finish(call, absl::OkStatus());
}

grpc::ServerWriteReactor<v1::FileChunk>* ClusterService::DownloadArtifact(
    grpc::CallbackServerContext* call, const v1::DownloadArtifactRequest* request) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kTransfer);
  if (!caller.ok()) {
    return Refusal<grpc::ServerWriteReactor<v1::FileChunk>>::Start(caller.status());
  }
  return StartArtifactDownload(context_, *request);
}

grpc::ServerUnaryReactor* ClusterService::ListWorkers(grpc::CallbackServerContext* call,
                                                      const v1::ListWorkersRequest*,
                                                      v1::ListWorkersResponse* response) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kUse);
  if (!caller.ok()) return Finish(call, caller.status());
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context_.controller.ListWorkers([reactor, response](const std::vector<WorkerStatus>& workers) {
    for (const WorkerStatus& worker : workers) *response->add_workers() = ToProto(worker);
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* ClusterService::DrainWorker(grpc::CallbackServerContext* call,
                                                      const v1::DrainWorkerRequest* request,
                                                      v1::Worker* response) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kOperate);
  if (!caller.ok()) return Finish(call, caller.status());
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context_.controller.SetDraining(WorkerId(request->worker_id()), true,
                                  request->checkpoint_running(), AnswerWorker(reactor, response));
  return reactor;
}

grpc::ServerUnaryReactor* ClusterService::UndrainWorker(grpc::CallbackServerContext* call,
                                                        const v1::UndrainWorkerRequest* request,
                                                        v1::Worker* response) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kOperate);
  if (!caller.ok()) return Finish(call, caller.status());
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context_.controller.SetDraining(WorkerId(request->worker_id()), false, false,
                                  AnswerWorker(reactor, response));
  return reactor;
}

}  // namespace offshoot
