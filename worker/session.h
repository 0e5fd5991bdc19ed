// The worker's stream to the coordinator, as a transport: what is sent goes out in order, what
// comes in is handed on, and its end is told once. No decision is made here (see agent.h).
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "offshoot/v1/cluster.grpc.pb.h"

namespace offshoot::worker {

struct SessionHandlers {
  // Called from threads of the session; must not block for long and must not destroy it.
  std::function<void(v1::CoordinatorMessage)> on_message;
  std::function<void(absl::Status)> on_closed;  // exactly once, last
};

// One stream. Thread-safe. The destructor ends the stream and waits for its threads.
class Session {
 public:
  virtual ~Session() = default;
  // Queues; output (logs, metrics) is dropped when more than a bound is queued.
  virtual void Send(v1::WorkerMessage message) = 0;
  // Ends the stream soon; on_closed follows.
  virtual void Close() = 0;
};

class SessionTransport {
 public:
  virtual ~SessionTransport() = default;
  virtual std::unique_ptr<Session> Open(SessionHandlers handlers) = 0;
};

class GrpcSessionTransport : public SessionTransport {
 public:
  explicit GrpcSessionTransport(std::shared_ptr<grpc::Channel> channel)
      : stub_(v1::Cluster::NewStub(channel)) {}
  std::unique_ptr<Session> Open(SessionHandlers handlers) override;

 private:
  const std::unique_ptr<v1::Cluster::Stub> stub_;
};

// A channel with a connection of its own that notices a silent peer (keepalive) and reconnects fast.
std::shared_ptr<grpc::Channel> MakeCoordinatorChannel(
    const std::string& target, const std::shared_ptr<grpc::ChannelCredentials>& credentials);

// What a worker says to the coordinator. Heartbeats do not wait behind a checkpoint's bytes, and a
// packet of those that was lost does not hold them up: on slow links the lease would run out.
struct CoordinatorChannels {
  std::shared_ptr<grpc::Channel> session;
  std::shared_ptr<grpc::Channel> artifacts;
};
CoordinatorChannels MakeCoordinatorChannels(
    const std::string& target, const std::shared_ptr<grpc::ChannelCredentials>& credentials);

}  // namespace offshoot::worker
