// absl::Status and grpc::Status are the same codes and a sentence: one becomes the other.
// Pure, thread-safe.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace offshoot {

// The message is cut at kMaxStatusMessageBytes, since gRPC carries it in a header of bounded size.
inline constexpr int kMaxStatusMessageBytes = 6 << 10;

grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace offshoot
