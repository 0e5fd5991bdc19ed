// The coordinator as the command line sees it: calls that wait for it for a stated time.
//
// A call that finds the coordinator away (UNAVAILABLE: starting, stopping, not there) is made again
// until `wait` has passed; every call here is safe to repeat. Thread-safe.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/grpc_status.h"
#include "offshoot/v1/cluster.grpc.pb.h"
#include "offshoot/v1/jobs.grpc.pb.h"
#include "offshoot/v1/models.grpc.pb.h"

namespace offshoot::cli {

class Client {
 public:
  // Where there are no credentials every call answers why.
  Client(std::string address, absl::Duration wait,
         absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials =
             grpc::InsecureChannelCredentials());

  v1::Jobs::Stub& jobs() { return *jobs_; }
  v1::Models::Stub& models() { return *models_; }
  v1::Cluster::Stub& cluster() { return *cluster_; }

  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Response*),
                                const Request& request) {
    Response response;
    const absl::Status status = Retry([&] {
      grpc::ClientContext context;
      context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
      response.Clear();
      return FromGrpcStatus((stub.*method)(&context, request, &response));
    });
    if (!status.ok()) return status;
    return response;
  }

  // Calls until it gives anything but UNAVAILABLE, or the time is up. `progressed` tells of a
  // stream that got further since it was last asked: the time then begins anew. CANCELLED soon
  // after `cancelled` says so.
  absl::Status Retry(const std::function<absl::Status()>& call,
                     const std::function<bool()>& progressed = nullptr,
                     const std::function<bool()>& cancelled = nullptr);

  const std::string& address() const { return address_; }

 private:
  // A submit may have to read a base model of many gigabytes for its digest.
  static constexpr absl::Duration kCallTimeout = absl::Minutes(15);

  absl::Status CannotReach(const std::string& why) const;

  const std::string address_;
  const absl::Duration wait_;
  const absl::Status unusable_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Jobs::Stub> jobs_;
  const std::unique_ptr<v1::Models::Stub> models_;
  const std::unique_ptr<v1::Cluster::Stub> cluster_;
};

}  // namespace offshoot::cli
