// offshoot.v1.Models. Thread-safe.
#pragma once

#include "coordinator/service/context.h"
#include "coordinator/service/transfers.h"
#include "offshoot/v1/models.grpc.pb.h"

namespace offshoot {

class ModelsService : public v1::Models::CallbackService {
 public:
  explicit ModelsService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* RegisterBaseModel(grpc::CallbackServerContext* call,
                                              const v1::RegisterBaseModelRequest* request,
                                              v1::BaseModel* response) override;
  grpc::ServerUnaryReactor* ListBaseModels(grpc::CallbackServerContext* call,
                                           const v1::ListBaseModelsRequest* request,
                                           v1::ListBaseModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetBaseModel(grpc::CallbackServerContext* call,
                                         const v1::GetBaseModelRequest* request,
                                         v1::BaseModel* response) override;
  grpc::ServerUnaryReactor* ListDerivatives(grpc::CallbackServerContext* call,
                                            const v1::ListDerivativesRequest* request,
                                            v1::ListDerivativesResponse* response) override;
  grpc::ServerUnaryReactor* GetDerivative(grpc::CallbackServerContext* call,
                                          const v1::GetDerivativeRequest* request,
                                          v1::Derivative* response) override;
  grpc::ServerWriteReactor<v1::FileChunk>* DownloadFile(
      grpc::CallbackServerContext* call, const v1::DownloadFileRequest* request) override;

 private:
  ServiceContext& context_;
};

}  // namespace offshoot
