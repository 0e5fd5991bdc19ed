// A worker's session over gRPC: reads one message at a time and gives it to the controller; what
// the controller says goes out in order through a bounded queue. Owns itself: made by StartSession,
// freed when gRPC and the controller are done with it.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "coordinator/service/context.h"
#include "offshoot/v1/cluster.pb.h"

namespace offshoot {

using SessionReactor = grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>;

// caller: the worker; its messages are taken for as long as it may say them.
SessionReactor* StartSession(ServiceContext& context, const Caller& caller);

}  // namespace offshoot
