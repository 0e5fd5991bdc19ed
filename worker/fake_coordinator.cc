#include "worker/fake_coordinator.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "absl/time/clock.h"
#include "common/digest.h"

namespace offshoot::worker {

FakeCoordinator::FakeCoordinator(Options options) : options_(options) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:" + std::to_string(options.port),
                           grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    std::fprintf(stderr, "the fake coordinator cannot listen\n");
    std::abort();
  }
}

FakeCoordinator::~FakeCoordinator() {
  CutSessions();
  server_->Shutdown(std::chrono::system_clock::now());
}

v1::File FakeCoordinator::AddArtifact(const std::string& path, const std::string& bytes) {
  v1::File file;
  file.set_path(path);
  file.set_digest(DigestOf(bytes));
  file.set_size_bytes(static_cast<std::int64_t>(bytes.size()));
  absl::MutexLock lock(&mutex_);
  artifacts_[file.digest()] = bytes;
  return file;
}

void FakeCoordinator::Corrupt(const std::string& digest) {
  absl::MutexLock lock(&mutex_);
  artifacts_[digest][0] ^= 1;
}

bool FakeCoordinator::HasArtifact(const std::string& digest) const {
  absl::MutexLock lock(&mutex_);
  return artifacts_.count(digest) > 0;
}

void FakeCoordinator::SetAcknowledge(bool acknowledge) {
  absl::MutexLock lock(&mutex_);
  options_.acknowledge = acknowledge;
}

void FakeCoordinator::SetUploadStatus(grpc::Status status, int times) {
  absl::MutexLock lock(&mutex_);
  refused_uploads_ = times;
  upload_status_ = status;
}

void FakeCoordinator::Send(const v1::CoordinatorMessage& message) {
  absl::MutexLock lock(&mutex_);
  if (!links_.empty()) links_.back().stream->Write(message);
}

void FakeCoordinator::Assign(const v1::Assignment& assignment) {
  v1::CoordinatorMessage message;
  *message.mutable_assignment() = assignment;
  Send(message);
}

void FakeCoordinator::Stop(const v1::Assignment& assignment, bool checkpoint,
                           const std::string& reason_code) {
  v1::CoordinatorMessage message;
  message.mutable_stop_attempt()->set_job_id(assignment.job_id());
  message.mutable_stop_attempt()->set_attempt(assignment.attempt());
  message.mutable_stop_attempt()->set_checkpoint(checkpoint);
  message.mutable_stop_attempt()->set_reason_code(reason_code);
  Send(message);
}

void FakeCoordinator::Acknowledge(const v1::AttemptEvent& event, bool fenced) {
  v1::CoordinatorMessage message;
  message.mutable_event_ack()->set_job_id(event.job_id());
  message.mutable_event_ack()->set_attempt(event.attempt());
  message.mutable_event_ack()->set_sequence(event.sequence());
  message.mutable_event_ack()->set_fenced(fenced);
  Send(message);
}

void FakeCoordinator::CutSessions() {
  absl::MutexLock lock(&mutex_);
  for (const Link& link : links_) link.context->TryCancel();
}

std::vector<v1::Register> FakeCoordinator::registrations() const {
  absl::MutexLock lock(&mutex_);
  return registrations_;
}

std::vector<v1::AttemptEvent> FakeCoordinator::events() const {
  absl::MutexLock lock(&mutex_);
  return events_;
}

std::vector<v1::Heartbeat> FakeCoordinator::heartbeats() const {
  absl::MutexLock lock(&mutex_);
  return heartbeats_;
}

std::set<std::string> FakeCoordinator::session_peers() const {
  absl::MutexLock lock(&mutex_);
  return session_peers_;
}

std::set<std::string> FakeCoordinator::upload_peers() const {
  absl::MutexLock lock(&mutex_);
  return upload_peers_;
}

std::vector<v1::Contribution> FakeCoordinator::contributions() const {
  absl::MutexLock lock(&mutex_);
  return contributions_;
}

std::string FakeCoordinator::log() const {
  absl::MutexLock lock(&mutex_);
  std::string text;
  for (const v1::AttemptOutput& output : outputs_) text += output.log();
  return text;
}

std::vector<v1::StepMetrics> FakeCoordinator::metrics() const {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::StepMetrics> metrics;
  for (const v1::AttemptOutput& output : outputs_) {
    metrics.insert(metrics.end(), output.metrics().begin(), output.metrics().end());
  }
  return metrics;
}

bool FakeCoordinator::WaitUntil(const std::function<bool()>& predicate, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    std::uint64_t seen = 0;
    {
      absl::MutexLock lock(&mutex_);
      seen = changes_;
    }
    if (predicate()) return true;
    absl::MutexLock lock(&mutex_);
    const auto changed = [this, seen] {
      mutex_.AssertReaderHeld();
      return changes_ != seen;
    };
    if (!mutex_.AwaitWithDeadline(absl::Condition(&changed), deadline)) return false;
  }
}

bool FakeCoordinator::WaitForRegistrations(std::size_t count) {
  return WaitUntil([this, count] { return registrations().size() >= count; });
}

std::optional<v1::AttemptEvent> FakeCoordinator::WaitForEvent(
    const std::function<bool(const v1::AttemptEvent&)>& predicate, absl::Duration timeout) {
  std::optional<v1::AttemptEvent> found;
  WaitUntil(
      [&] {
        for (const v1::AttemptEvent& event : events()) {
          if (!predicate(event)) continue;
          found = event;
          return true;
        }
        return false;
      },
      timeout);
  return found;
}

grpc::Status FakeCoordinator::Session(grpc::ServerContext* context, Stream* stream) {
  {
    absl::MutexLock lock(&mutex_);
    links_.push_back({stream, context});
    session_peers_.insert(context->peer());
  }
  v1::WorkerMessage message;
  while (stream->Read(&message)) Receive(message, stream);
  absl::MutexLock lock(&mutex_);
  links_.erase(std::remove_if(links_.begin(), links_.end(),
                              [stream](const Link& link) { return link.stream == stream; }),
               links_.end());
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut by the test");
}

void FakeCoordinator::Receive(const v1::WorkerMessage& message, Stream* stream) {
  absl::MutexLock lock(&mutex_);
  ++changes_;
  v1::CoordinatorMessage answer;
  switch (message.message_case()) {
    case v1::WorkerMessage::kRegister:
      registrations_.push_back(message.register_());
      answer.mutable_welcome()->set_protocol_version(1);
      answer.mutable_welcome()->set_coordinator_id("fake");
      answer.mutable_welcome()->set_heartbeat_interval_ms(options_.heartbeat_interval_ms);
      answer.mutable_welcome()->set_lease_ms(10'000);
      answer.mutable_welcome()->set_unreachable_grace_ms(options_.unreachable_grace_ms);
      stream->Write(answer);
      break;
    case v1::WorkerMessage::kHeartbeat:
      heartbeats_.push_back(message.heartbeat());
      break;
    case v1::WorkerMessage::kAttemptEvent:
      events_.push_back(message.attempt_event());
      if (!options_.acknowledge) break;
      answer.mutable_event_ack()->set_job_id(message.attempt_event().job_id());
      answer.mutable_event_ack()->set_attempt(message.attempt_event().attempt());
      answer.mutable_event_ack()->set_sequence(message.attempt_event().sequence());
      stream->Write(answer);
      break;
    case v1::WorkerMessage::kAttemptOutput:
      outputs_.push_back(message.attempt_output());
      break;
    case v1::WorkerMessage::kContribution:
      contributions_.push_back(message.contribution());
      break;
    case v1::WorkerMessage::MESSAGE_NOT_SET:
      break;
  }
}

grpc::Status FakeCoordinator::GetArtifactLocations(grpc::ServerContext*,
                                                   const v1::GetArtifactLocationsRequest* request,
                                                   v1::GetArtifactLocationsResponse* response) {
  absl::MutexLock lock(&mutex_);
  const auto found = artifacts_.find(request->digest());
  if (found == artifacts_.end()) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND, "nobody has " + request->digest());
  }
  response->add_locations()->set_uri("file:///nowhere/on/this/machine");
  response->add_locations()->set_uri("grpc:");
  response->set_size_bytes(static_cast<std::int64_t>(found->second.size()));
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::UploadArtifact(grpc::ServerContext* context,
                                             grpc::ServerReader<v1::UploadArtifactRequest>* reader,
                                             v1::UploadArtifactResponse* response) {
  v1::UploadArtifactRequest request;
  std::string digest;
  std::string bytes;
  while (reader->Read(&request)) {
    if (!request.digest().empty()) digest = request.digest();
    bytes += request.data();
  }
  absl::MutexLock lock(&mutex_);
  ++changes_;
  upload_peers_.insert(context->peer());
  if (refused_uploads_ > 0) {
    --refused_uploads_;
    return upload_status_;
  }
  if (DigestOf(bytes) != digest) {
    return grpc::Status(grpc::StatusCode::DATA_LOSS, "wrong digest for " + digest);
  }
  artifacts_[digest] = bytes;
  response->set_digest(digest);
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::GetUploadOffset(grpc::ServerContext*,
                                              const v1::GetUploadOffsetRequest* request,
                                              v1::GetUploadOffsetResponse* response) {
  absl::MutexLock lock(&mutex_);
  response->set_complete(refused_uploads_ == 0 && artifacts_.count(request->digest()) > 0);
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::DownloadArtifact(grpc::ServerContext*,
                                               const v1::DownloadArtifactRequest* request,
                                               grpc::ServerWriter<v1::FileChunk>* writer) {
  ++downloads_;
  std::string bytes;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = artifacts_.find(request->digest());
    if (found == artifacts_.end()) return grpc::Status(grpc::StatusCode::NOT_FOUND, "gone");
    bytes = found->second;
  }
  constexpr std::size_t kPieceBytes = 1000;
  for (std::size_t offset = static_cast<std::size_t>(request->offset()); offset < bytes.size();
       offset += kPieceBytes) {
    v1::FileChunk chunk;
    chunk.set_data(bytes.substr(offset, kPieceBytes));
    chunk.set_offset(static_cast<std::int64_t>(offset));
    chunk.set_total_bytes(static_cast<std::int64_t>(bytes.size()));
    downloaded_bytes_ += static_cast<std::int64_t>(chunk.data().size());
    if (!writer->Write(chunk)) break;
  }
  return grpc::Status::OK;
}

}  // namespace offshoot::worker
