// A coordinator for tests: the Cluster service over real gRPC on a free port of loopback, in this
// process. It stores artifacts in memory, records what workers say, and says what the test tells
// it to. Thread-safe; every wait is bounded and fails the test by returning false.
#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "offshoot/v1/cluster.grpc.pb.h"

namespace offshoot::worker {

class FakeCoordinator : private v1::Cluster::Service {
 public:
  struct Options {
    int port = 0;             // 0: any free one
    bool acknowledge = true;  // answer state events with EventAck
    std::int64_t heartbeat_interval_ms = 50;
    std::int64_t unreachable_grace_ms = 600'000;
  };
  explicit FakeCoordinator(Options options);
  FakeCoordinator() : FakeCoordinator(Options{}) {}
  ~FakeCoordinator() override;

  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // What it has, by digest.
  v1::File AddArtifact(const std::string& path, const std::string& bytes);
  void Corrupt(const std::string& digest);  // downloads give other bytes of the same size
  bool HasArtifact(const std::string& digest) const;
  int downloads() const { return downloads_; }
  std::int64_t downloaded_bytes() const { return downloaded_bytes_; }

  void SetAcknowledge(bool acknowledge);
  // For the next uploads, `times` of them.
  void SetUploadStatus(grpc::Status status, int times = 1'000'000);
  void Send(const v1::CoordinatorMessage& message);  // to the newest session
  void Assign(const v1::Assignment& assignment);
  void Stop(const v1::Assignment& assignment, bool checkpoint, const std::string& reason_code);
  void Acknowledge(const v1::AttemptEvent& event, bool fenced);
  void CutSessions();  // ends every stream with UNAVAILABLE

  // Everything it was told, in order.
  std::vector<v1::Register> registrations() const;
  std::vector<v1::AttemptEvent> events() const;  // repeats included
  std::vector<v1::Heartbeat> heartbeats() const;
  std::vector<v1::Contribution> contributions() const;
  std::string log() const;  // all log bytes in order of arrival
  std::vector<v1::StepMetrics> metrics() const;
  // The worker's ends of the connections that carried sessions and uploads.
  std::set<std::string> session_peers() const;
  std::set<std::string> upload_peers() const;

  // Waits until the predicate holds; it is asked again whenever something came.
  bool WaitUntil(const std::function<bool()>& predicate,
                 absl::Duration timeout = absl::Seconds(20));
  bool WaitForRegistrations(std::size_t count);
  // The first event for which the predicate holds.
  std::optional<v1::AttemptEvent> WaitForEvent(
      const std::function<bool(const v1::AttemptEvent&)>& predicate,
      absl::Duration timeout = absl::Seconds(20));

 private:
  using Stream = grpc::ServerReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>;
  struct Link {
    Stream* stream;
    grpc::ServerContext* context;
  };

  grpc::Status Session(grpc::ServerContext* context, Stream* stream) override;
  grpc::Status GetArtifactLocations(grpc::ServerContext*, const v1::GetArtifactLocationsRequest*,
                                    v1::GetArtifactLocationsResponse*) override;
  grpc::Status UploadArtifact(grpc::ServerContext*, grpc::ServerReader<v1::UploadArtifactRequest>*,
                              v1::UploadArtifactResponse*) override;
  grpc::Status GetUploadOffset(grpc::ServerContext*, const v1::GetUploadOffsetRequest*,
                               v1::GetUploadOffsetResponse*) override;
  grpc::Status DownloadArtifact(grpc::ServerContext*, const v1::DownloadArtifactRequest*,
                                grpc::ServerWriter<v1::FileChunk>*) override;
  void Receive(const v1::WorkerMessage& message, Stream* stream);

  Options options_;
  mutable absl::Mutex mutex_;
  std::vector<Link> links_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string> artifacts_ ABSL_GUARDED_BY(mutex_);
  grpc::Status upload_status_ ABSL_GUARDED_BY(mutex_);
  int refused_uploads_ ABSL_GUARDED_BY(mutex_) = 0;  // still to be refused
  std::vector<v1::Register> registrations_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::AttemptEvent> events_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::Heartbeat> heartbeats_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::Contribution> contributions_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::AttemptOutput> outputs_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> session_peers_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> upload_peers_ ABSL_GUARDED_BY(mutex_);
  std::uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<int> downloads_ = 0;
  std::atomic<std::int64_t> downloaded_bytes_ = 0;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace offshoot::worker
