// offshoot.v1.Jobs. Thread-safe; no call blocks one of gRPC's threads on the store's sync.
#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/job_spec.h"
#include "coordinator/service/context.h"
#include "offshoot/v1/jobs.grpc.pb.h"

namespace offshoot {

struct CheckedSpec {
  std::shared_ptr<const JobSpec> spec;
  std::string digest;
};

class JobsService : public v1::Jobs::CallbackService {
 public:
  explicit JobsService(ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* SubmitJob(grpc::CallbackServerContext* call,
                                      const v1::SubmitJobRequest* request,
                                      v1::SubmitJobResponse* response) override;
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* call,
                                   const v1::GetJobRequest* request, v1::Job* response) override;
  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* call,
                                     const v1::ListJobsRequest* request,
                                     v1::ListJobsResponse* response) override;
  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(grpc::CallbackServerContext* call,
                                                   const v1::WatchJobRequest* request) override;
  grpc::ServerWriteReactor<v1::LogChunk>* StreamLogs(grpc::CallbackServerContext* call,
                                                     const v1::StreamLogsRequest* request) override;
  grpc::ServerWriteReactor<v1::StepMetrics>* StreamMetrics(
      grpc::CallbackServerContext* call, const v1::StreamMetricsRequest* request) override;
  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* call,
                                      const v1::CancelJobRequest* request,
                                      v1::Job* response) override;
  grpc::ServerUnaryReactor* PauseJob(grpc::CallbackServerContext* call,
                                     const v1::PauseJobRequest* request,
                                     v1::Job* response) override;
  grpc::ServerUnaryReactor* ResumeJob(grpc::CallbackServerContext* call,
                                      const v1::ResumeJobRequest* request,
                                      v1::Job* response) override;

 private:
  // Parses and validates; the same text as lately is not parsed again.
  absl::StatusOr<CheckedSpec> CheckSpec(const std::string& yaml);
  absl::Status MayUse(const grpc::CallbackServerContext& call, const std::string& job_id);
  grpc::ServerUnaryReactor* Change(grpc::CallbackServerContext* call, const std::string& job_id,
                                   LifecycleEvent event, v1::Job* response);

  ServiceContext& context_;
  absl::Mutex mutex_;
  absl::flat_hash_map<std::string, CheckedSpec> checked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace offshoot
