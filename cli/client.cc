#include "cli/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/retry.h"

namespace offshoot::cli {
namespace {

std::shared_ptr<grpc::Channel> MakeChannel(
    const std::string& address,
    const absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>>& credentials) {
  grpc::ChannelArguments arguments;
  // A coordinator that has just been started is found soon.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(
      address, credentials.ok() ? *credentials : grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

Client::Client(std::string address, absl::Duration wait,
               absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials)
    : address_(std::move(address)),
      wait_(wait),
      unusable_(credentials.status()),
      channel_(MakeChannel(address_, credentials)),
      jobs_(v1::Jobs::NewStub(channel_)),
      models_(v1::Models::NewStub(channel_)),
      cluster_(v1::Cluster::NewStub(channel_)) {}

absl::Status Client::CannotReach(const std::string& why) const {
  return absl::UnavailableError(absl::StrCat(
      "cannot reach the coordinator at ", address_, " within ", absl::FormatDuration(wait_),
      why.empty() ? "" : absl::StrCat(" (", why, ")"),
      "; is it running there? Name another with --coordinator or OFFSHOOT_COORDINATOR"));
}

absl::Status Client::Retry(const std::function<absl::Status()>& call,
                           const std::function<bool()>& progressed,
                           const std::function<bool()>& cancelled) {
  if (!unusable_.ok()) return unusable_;
  constexpr absl::Duration kLook = absl::Milliseconds(100);  // between two looks at `cancelled`
  Backoff backoff({absl::Milliseconds(20), absl::Milliseconds(500), 2.0, 0.5});
  absl::Time deadline = absl::Now() + wait_;
  std::string why;
  while (true) {
    while (
        !channel_->WaitForConnected(absl::ToChronoTime(std::min(deadline, absl::Now() + kLook)))) {
      if (cancelled != nullptr && cancelled()) return absl::CancelledError("stopped");
      if (absl::Now() >= deadline) return CannotReach(why);
    }
    const absl::Status status = call();
    if (status.code() != absl::StatusCode::kUnavailable) return status;
    if (progressed != nullptr && progressed()) {
      deadline = absl::Now() + wait_;
      backoff.Reset();
    }
    if (cancelled != nullptr && cancelled()) return absl::CancelledError("stopped");
    why = std::string(status.message());
    const absl::Duration wait = backoff.Next();
    if (absl::Now() + wait > deadline) return CannotReach(why);
    absl::SleepFor(wait);
  }
}

}  // namespace offshoot::cli
