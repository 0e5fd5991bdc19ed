// A stream that is refused at once. Owns itself: freed when gRPC is done with it.
#pragma once

#include "absl/status/status.h"
#include "common/grpc_status.h"

namespace offshoot {

template <typename Reactor>
class Refusal : public Reactor {
 public:
  static Reactor* Start(const absl::Status& status) { return new Refusal(status); }
  void OnDone() override { delete this; }

 private:
  explicit Refusal(const absl::Status& status) { this->Finish(ToGrpcStatus(status)); }
};

}  // namespace offshoot
