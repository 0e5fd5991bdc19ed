#include "worker/session.h"

#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/grpc_status.h"

namespace offshoot::worker {
namespace {

constexpr std::size_t kMaxQueuedOutputBytes = 16 << 20;

class GrpcSession : public Session {
 public:
  GrpcSession(v1::Cluster::Stub& stub, SessionHandlers handlers)
      : handlers_(std::move(handlers)), reader_([this, &stub] { Run(stub); }) {}

  ~GrpcSession() override {
    Close();
    reader_.join();
  }

  void Send(v1::WorkerMessage message) override {
    const bool output = message.has_attempt_output();
    const std::size_t bytes = output ? message.ByteSizeLong() : 0;
    absl::MutexLock lock(&mutex_);
    if (closing_) return;
    if (output && queued_output_bytes_ + bytes > kMaxQueuedOutputBytes) return;
    queued_output_bytes_ += bytes;
    queue_.push_back(std::move(message));
  }

  void Close() override {
    {
      absl::MutexLock lock(&mutex_);
      closing_ = true;
    }
    context_.TryCancel();
  }

 private:
  bool HasWork() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return closing_ || !queue_.empty(); }

  void WriteLoop() {
    while (true) {
      v1::WorkerMessage message;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &GrpcSession::HasWork));
        if (closing_) return;
        message = std::move(queue_.front());
        queue_.pop_front();
        if (message.has_attempt_output()) queued_output_bytes_ -= message.ByteSizeLong();
      }
      if (!stream_->Write(message)) return;  // the reader learns why
    }
  }

  void Run(v1::Cluster::Stub& stub) {
    // Blocks until there is a connection or none can be had.
    stream_ = stub.Session(&context_);
    std::thread writer([this] { WriteLoop(); });
    v1::CoordinatorMessage message;
    while (stream_->Read(&message)) handlers_.on_message(std::exchange(message, {}));
    {
      absl::MutexLock lock(&mutex_);
      closing_ = true;
    }
    writer.join();
    const grpc::Status status = stream_->Finish();
    handlers_.on_closed(status.ok() ? absl::UnavailableError("the coordinator ended the session")
                                    : FromGrpcStatus(status));
  }

  const SessionHandlers handlers_;
  grpc::ClientContext context_;
  // Of the reader thread, and of the writer it starts.
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>> stream_;
  absl::Mutex mutex_;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<v1::WorkerMessage> queue_ ABSL_GUARDED_BY(mutex_);
  std::size_t queued_output_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread reader_;
};

}  // namespace

std::unique_ptr<Session> GrpcSessionTransport::Open(SessionHandlers handlers) {
  return std::make_unique<GrpcSession>(*stub_, std::move(handlers));
}

std::shared_ptr<grpc::Channel> MakeCoordinatorChannel(
    const std::string& target, const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  grpc::ChannelArguments arguments;
  // Else gRPC gives all channels with these arguments the same connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, 16 << 20);
  return grpc::CreateCustomChannel(target, credentials, arguments);
}

CoordinatorChannels MakeCoordinatorChannels(
    const std::string& target, const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
  return {MakeCoordinatorChannel(target, credentials), MakeCoordinatorChannel(target, credentials)};
}

}  // namespace offshoot::worker
