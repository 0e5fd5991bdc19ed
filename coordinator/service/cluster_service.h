// offshoot.v1.Cluster. Thread-safe.
#pragma once

#include "coordinator/service/context.h"
#include "coordinator/service/session.h"
#include "coordinator/service/transfers.h"
#include "offshoot/v1/cluster.grpc.pb.h"

namespace offshoot {

class ClusterService : public v1::Cluster::CallbackService {
 public:
  explicit ClusterService(ServiceContext& context) : context_(context) {}

  SessionReactor* Session(grpc::CallbackServerContext* call) override;
  grpc::ServerUnaryReactor* GetArtifactLocations(
      grpc::CallbackServerContext* call, const v1::GetArtifactLocationsRequest* request,
      v1::GetArtifactLocationsResponse* response) override;
  grpc::ServerReadReactor<v1::UploadArtifactRequest>* UploadArtifact(
      grpc::CallbackServerContext* call, v1::UploadArtifactResponse* response) override;
  grpc::ServerUnaryReactor* GetUploadOffset(grpc::CallbackServerContext* call,
                                            const v1::GetUploadOffsetRequest* request,
                                            v1::GetUploadOffsetResponse* response) override;
  grpc::ServerWriteReactor<v1::FileChunk>* DownloadArtifact(
      grpc::CallbackServerContext* call, const v1::DownloadArtifactRequest* request) override;
  grpc::ServerUnaryReactor* ListWorkers(grpc::CallbackServerContext* call,
                                        const v1::ListWorkersRequest* request,
                                        v1::ListWorkersResponse* response) override;
  grpc::ServerUnaryReactor* DrainWorker(grpc::CallbackServerContext* call,
                                        const v1::DrainWorkerRequest* request,
                                        v1::Worker* response) override;
  grpc::ServerUnaryReactor* UndrainWorker(grpc::CallbackServerContext* call,
                                          const v1::UndrainWorkerRequest* request,
                                          v1::Worker* response) override;
  grpc::ServerUnaryReactor* InviteWorker(grpc::CallbackServerContext* call,
                                         const v1::InviteWorkerRequest* request,
                                         v1::InviteWorkerResponse* response) override;
  grpc::ServerUnaryReactor* JoinCluster(grpc::CallbackServerContext* call,
                                        const v1::JoinClusterRequest* request,
                                        v1::WorkerCertificate* response) override;
  grpc::ServerUnaryReactor* RenewCertificate(grpc::CallbackServerContext* call,
                                             const v1::RenewCertificateRequest* request,
                                             v1::WorkerCertificate* response) override;
  grpc::ServerUnaryReactor* ExpelWorker(grpc::CallbackServerContext* call,
                                        const v1::ExpelWorkerRequest* request,
                                        v1::ExpelWorkerResponse* response) override;

 private:
  ServiceContext& context_;
};

}  // namespace offshoot
