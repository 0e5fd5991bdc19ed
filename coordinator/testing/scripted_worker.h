// A worker that says what a test tells it to, over real gRPC. Each wait ends after 10 s at the
// latest and then fails the test. Used by one thread.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/digest.h"
#include "offshoot/v1/cluster.grpc.pb.h"

namespace offshoot {

inline constexpr absl::Duration kPatience = absl::Seconds(10);

class ScriptedWorker {
 public:
  ScriptedWorker(const std::string& address, std::string worker_id, int cpus = 1)
      : worker_id_(std::move(worker_id)),
        cpus_(cpus),
        stub_(v1::Cluster::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {}
  ~ScriptedWorker() { Disconnect(); }

  v1::Register MakeRegister(const std::vector<std::pair<std::string, int>>& held = {}) const {
    v1::Register message;
    message.set_protocol_version(1);
    message.set_version("test");
    message.set_worker_id(worker_id_);
    message.set_incarnation_id("inc-" + worker_id_);
    message.set_name("name-of-" + worker_id_);
    for (int i = 0; i < cpus_; ++i) {
      v1::Device* device = message.mutable_inventory()->add_devices();
      device->set_device_id("cpu:" + std::to_string(i));
      device->set_kind("cpu");
      device->set_threads(1);
      device->set_memory_bytes(std::int64_t{8} << 30);
    }
    for (const auto& [job_id, attempt] : held) {
      v1::HeldAttempt* to = message.add_held_attempts();
      to->set_job_id(job_id);
      to->set_attempt(attempt);
    }
    return message;
  }

  // Opens a session and registers; the answer is read with Await.
  void Connect(const v1::Register& registration) {
    Disconnect();
    context_ = std::make_unique<grpc::ClientContext>();
    stream_ = stub_->Session(context_.get());
    {
      absl::MutexLock lock(&mutex_);
      received_.clear();
      ended_ = false;
    }
    reader_ = std::thread([this] { Read(); });
    v1::WorkerMessage message;
    *message.mutable_register_() = registration;
    stream_->Write(message);
  }
  void Connect(const std::vector<std::pair<std::string, int>>& held = {}) {
    Connect(MakeRegister(held));
    ASSERT_TRUE(Await(v1::CoordinatorMessage::kWelcome).has_value());
  }

  void Disconnect() {
    if (context_ != nullptr) context_->TryCancel();
    if (reader_.joinable()) reader_.join();
    if (stream_ != nullptr) final_status_ = stream_->Finish();
    stream_.reset();
    context_.reset();
  }
  // After the coordinator has ended the session by itself.
  grpc::Status AwaitEnd() {
    {
      absl::MutexLock lock(&mutex_);
      EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&ended_), kPatience));
    }
    if (reader_.joinable()) reader_.join();
    final_status_ = stream_->Finish();
    stream_.reset();
    context_.reset();
    return final_status_;
  }

  // The next message of this kind; others before it are dropped.
  std::optional<v1::CoordinatorMessage> Await(v1::CoordinatorMessage::MessageCase kind,
                                              absl::Duration patience = kPatience) {
    const absl::Time deadline = absl::Now() + patience;
    absl::MutexLock lock(&mutex_);
    for (;;) {
      while (!received_.empty()) {
        v1::CoordinatorMessage message = std::move(received_.front());
        received_.pop_front();
        if (message.message_case() == kind) return message;
      }
      const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return ended_ || !received_.empty();
      };
      if (ended_ || !mutex_.AwaitWithDeadline(absl::Condition(&ready), deadline)) {
        return std::nullopt;
      }
    }
  }
  v1::Assignment AwaitAssignment() {
    const auto message = Await(v1::CoordinatorMessage::kAssignment);
    EXPECT_TRUE(message.has_value()) << "no assignment came";
    return message ? message->assignment() : v1::Assignment();
  }
  v1::StopAttempt AwaitStop() {
    const auto message = Await(v1::CoordinatorMessage::kStopAttempt);
    EXPECT_TRUE(message.has_value()) << "no stop came";
    return message ? message->stop_attempt() : v1::StopAttempt();
  }

  void Send(const v1::WorkerMessage& message) { stream_->Write(message); }
  void SendHeartbeat(const std::vector<std::pair<std::string, int>>& held) {
    v1::WorkerMessage message;
    message.mutable_heartbeat();
    for (const auto& [job_id, attempt] : held) {
      v1::HeldAttempt* to = message.mutable_heartbeat()->add_held_attempts();
      to->set_job_id(job_id);
      to->set_attempt(attempt);
    }
    stream_->Write(message);
  }
  // Sends an event and waits for its acknowledgement.
  v1::EventAck Report(v1::AttemptEvent event) {
    v1::WorkerMessage message;
    *message.mutable_attempt_event() = std::move(event);
    stream_->Write(message);
    const auto answer = Await(v1::CoordinatorMessage::kEventAck);
    EXPECT_TRUE(answer.has_value()) << "no acknowledgement came";
    return answer ? answer->event_ack() : v1::EventAck();
  }
  static v1::AttemptEvent Event(const v1::Assignment& assignment, std::int64_t sequence) {
    v1::AttemptEvent event;
    event.set_job_id(assignment.job_id());
    event.set_attempt(assignment.attempt());
    event.set_sequence(sequence);
    return event;
  }
  void PassPreflight(
      const std::string& result_json = R"({"rows": 3, "warnings": ["short rows"]})") {
    const v1::Assignment assignment = AwaitAssignment();
    ASSERT_EQ(assignment.kind(), v1::ASSIGNMENT_KIND_PREFLIGHT);
    v1::AttemptEvent event = Event(assignment, 1);
    event.mutable_preflight()->set_ok(true);
    event.mutable_preflight()->set_result_json(result_json);
    EXPECT_FALSE(Report(event).fenced());
  }
  void Start(const v1::Assignment& assignment, std::int64_t first_step = 1) {
    v1::AttemptEvent event = Event(assignment, 1);
    event.mutable_started()->set_first_step(first_step);
    event.mutable_started()->set_total_steps(100);
    EXPECT_FALSE(Report(event).fenced());
  }

  // Uploads bytes as an attempt's artifact (job_id empty: as a client's).
  grpc::Status Upload(const std::string& bytes, const std::string& job_id = "", int attempt = 0,
                      std::int64_t offset = 0, std::string digest = "") {
    if (digest.empty()) digest = DigestOf(bytes);
    grpc::ClientContext context;
    v1::UploadArtifactResponse response;
    auto writer = stub_->UploadArtifact(&context, &response);
    v1::UploadArtifactRequest request;
    request.set_digest(digest);
    request.set_size_bytes(static_cast<std::int64_t>(bytes.size()));
    request.set_offset(offset);
    request.set_job_id(job_id);
    request.set_attempt(attempt);
    writer->Write(request);
    for (std::size_t at = static_cast<std::size_t>(offset); at < bytes.size(); at += 65536) {
      request.Clear();
      request.set_data(bytes.substr(at, 65536));
      if (!writer->Write(request)) break;
    }
    writer->WritesDone();
    return writer->Finish();
  }
  v1::File UploadedFile(const std::string& path, const std::string& bytes) {
    const grpc::Status status = Upload(bytes);
    EXPECT_TRUE(status.ok()) << status.error_message();
    v1::File file;
    file.set_path(path);
    file.set_digest(DigestOf(bytes));
    file.set_size_bytes(static_cast<std::int64_t>(bytes.size()));
    return file;
  }
  v1::AttemptEvent CheckpointEvent(const v1::Assignment& assignment, std::int64_t sequence,
                                   std::int64_t step) {
    v1::AttemptEvent event = Event(assignment, sequence);
    v1::Checkpoint* checkpoint = event.mutable_checkpointed()->mutable_checkpoint();
    checkpoint->set_step(step);
    *checkpoint->add_files() =
        UploadedFile("manifest.json", "checkpoint of step " + std::to_string(step));
    return event;
  }

  v1::Cluster::Stub& stub() { return *stub_; }

 private:
  void Read() {
    v1::CoordinatorMessage message;
    while (stream_->Read(&message)) {
      absl::MutexLock lock(&mutex_);
      received_.push_back(message);
    }
    absl::MutexLock lock(&mutex_);
    ended_ = true;
  }

  const std::string worker_id_;
  const int cpus_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>> stream_;
  grpc::Status final_status_;
  std::thread reader_;
  absl::Mutex mutex_;
  std::deque<v1::CoordinatorMessage> received_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = true;
};

}  // namespace offshoot
