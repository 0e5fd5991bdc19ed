// What the unary calls of all services answer with.
#pragma once

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"

namespace offshoot {

inline grpc::ServerUnaryReactor* Finish(grpc::CallbackServerContext* call,
                                        const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

// The entries of a list's page; 0 asks for the usual number.
inline absl::StatusOr<int> PageSize(int asked) {
  constexpr int kDefaultPage = 50;
  constexpr int kMaxPage = 1000;
  if (asked < 0 || asked > kMaxPage) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size must be 0 to ", kMaxPage, ", not ", asked));
  }
  return asked == 0 ? kDefaultPage : asked;
}

}  // namespace offshoot
