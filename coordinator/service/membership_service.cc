// The part of offshoot.v1.Cluster that lets workers in and shuts them out.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "coordinator/service/cluster_service.h"

namespace offshoot {
namespace {

grpc::ServerUnaryReactor* FinishMembership(grpc::CallbackServerContext* call,
                                           const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

absl::Status NobodyJoins() {
  return absl::FailedPreconditionError(
      "this coordinator lets no worker join by a token; give it tls_client_ca_key, the key of its"
      " CA");
}

void SetExpireTime(google::protobuf::Timestamp* to, absl::Time time) {
  to->set_seconds(absl::ToUnixSeconds(time));
}

// What writes a file runs in the pool.
grpc::ServerUnaryReactor* AnswerCertificate(
    ServiceContext& context, grpc::CallbackServerContext* call, v1::WorkerCertificate* response,
    std::function<absl::StatusOr<IssuedCertificate>()> issue) {
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context.pool.Post([reactor, response, issue = std::move(issue)] {
    const absl::StatusOr<IssuedCertificate> issued = issue();
    if (issued.ok()) {
      response->set_certificate(issued->certificate_pem);
      SetExpireTime(response->mutable_expire_time(), issued->expires);
    }
    reactor->Finish(ToGrpcStatus(issued.status()));
  });
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* ClusterService::InviteWorker(grpc::CallbackServerContext* call,
                                                       const v1::InviteWorkerRequest* request,
                                                       v1::InviteWorkerResponse* response) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kAdminister);
  if (!caller.ok()) return FinishMembership(call, caller.status());
  if (context_.authority == nullptr) return FinishMembership(call, NobodyJoins());
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  const absl::Duration valid = absl::Milliseconds(request->valid_ms());
  context_.pool.Post([this, reactor, response, valid] {
    const absl::StatusOr<Invitation> invitation = context_.authority->Invite(valid);
    if (invitation.ok()) {
      response->set_token(invitation->token);
      SetExpireTime(response->mutable_expire_time(), invitation->expires);
    }
    reactor->Finish(ToGrpcStatus(invitation.status()));
  });
  return reactor;
}

// The one call of which nobody is asked who it is: the token says it.
grpc::ServerUnaryReactor* ClusterService::JoinCluster(grpc::CallbackServerContext* call,
                                                      const v1::JoinClusterRequest* request,
                                                      v1::WorkerCertificate* response) {
  context_.counters.cluster += 1;
  if (context_.authority == nullptr) return FinishMembership(call, NobodyJoins());
  return AnswerCertificate(context_, call, response, [this, request] {
    return context_.authority->Join(request->token(), request->worker_id(),
                                    request->certificate_request());
  });
}

grpc::ServerUnaryReactor* ClusterService::RenewCertificate(
    grpc::CallbackServerContext* call, const v1::RenewCertificateRequest* request,
    v1::WorkerCertificate* response) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kServe);
  if (!caller.ok()) return FinishMembership(call, caller.status());
  if (context_.authority == nullptr) return FinishMembership(call, NobodyJoins());
  if (caller->worker_id.empty()) {
    return FinishMembership(call, absl::PermissionDeniedError(
                                      "only a certificate that was given to a worker for its join"
                                      " token is renewed"));
  }
  return AnswerCertificate(
      context_, call, response, [this, request, worker_id = caller->worker_id] {
        return context_.authority->Renew(worker_id, request->certificate_request());
      });
}

grpc::ServerUnaryReactor* ClusterService::ExpelWorker(grpc::CallbackServerContext* call,
                                                      const v1::ExpelWorkerRequest* request,
                                                      v1::ExpelWorkerResponse*) {
  context_.counters.cluster += 1;
  const absl::StatusOr<Caller> caller = Require(context_, *call, Right::kAdminister);
  if (!caller.ok()) return FinishMembership(call, caller.status());
  if (context_.authority == nullptr) return FinishMembership(call, NobodyJoins());
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  context_.pool.Post([this, reactor, request] {
    reactor->Finish(ToGrpcStatus(context_.authority->Expel(request->worker_id())));
  });
  return reactor;
}

}  // namespace offshoot
