// WatchJob, StreamLogs and StreamMetrics: what is stored first, then what comes.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "coordinator/service/context.h"
#include "offshoot/v1/jobs.pb.h"

namespace offshoot {

grpc::ServerWriteReactor<v1::JobEvent>* StartWatch(ServiceContext& context,
                                                   const v1::WatchJobRequest& request);
grpc::ServerWriteReactor<v1::LogChunk>* StartLogs(ServiceContext& context,
                                                  const v1::StreamLogsRequest& request);
grpc::ServerWriteReactor<v1::StepMetrics>* StartMetrics(ServiceContext& context,
                                                        const v1::StreamMetricsRequest& request);

}  // namespace offshoot
