#include "coordinator/service/session.h"

#include <spdlog/spdlog.h>

#include <deque>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/grpc_status.h"
#include "coordinator/service/convert.h"
#include "coordinator/session_messages.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxQueuedMessages = 4096;
constexpr int kMaxMetricsPerMessage = 4096;

class Session : public SessionReactor,
                public SessionPeer,
                public std::enable_shared_from_this<Session> {
 public:
  Session(ServiceContext& context, std::string worker_id)
      : context_(context), worker_id_(std::move(worker_id)) {}

  void Begin() {
    self_ = shared_from_this();
    id_ = context_.controller.OpenSession(shared_from_this());
    ReadNext();
  }

  // --- SessionPeer: the controller's side ---
  void Send(SessionMessage message) override {
    absl::MutexLock lock(&mutex_);
    if (closing_) return;
    if (outgoing_.size() >= kMaxQueuedMessages) {
      CloseLocked(absl::ResourceExhaustedError("the worker does not read what it is told"));
      return;
    }
    outgoing_.push_back(ToProto(message));
    WriteNextLocked();
  }

  void Close(absl::Status status) override {
    absl::MutexLock lock(&mutex_);
    CloseLocked(std::move(status));
  }

  // --- gRPC's side ---
  void OnReadDone(bool ok) override {
    if (!ok) {
      Close(absl::OkStatus());
      return;
    }
    if (absl::Status status = Dispatch(); !status.ok()) Close(std::move(status));
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) CloseLocked(absl::UnavailableError("the worker has gone"));
    if (closing_) {
      FinishLocked();
      return;
    }
    outgoing_.pop_front();
    WriteNextLocked();
  }

  void OnCancel() override { Close(absl::CancelledError("the worker has gone")); }

  void OnDone() override {
    context_.controller.CloseSession(id_);
    self_.reset();
  }

 private:
  void ReadNext() {
    absl::MutexLock lock(&mutex_);
    if (!finished_) StartRead(&incoming_);
  }

  Controller::Done ContinueReading() {
    return [self = shared_from_this()] { self->ReadNext(); };
  }

  absl::Status Dispatch() {
    Controller& controller = context_.controller;
    if (!worker_id_.empty() && context_.authority != nullptr) {
      if (absl::Status member = context_.authority->Check(worker_id_); !member.ok()) return member;
    }
    const bool first = !registered_;
    if (first != incoming_.has_register_()) {
      return absl::FailedPreconditionError(
          "a session begins with one register message and has only one");
    }
    switch (incoming_.message_case()) {
      case v1::WorkerMessage::kRegister: {
        absl::StatusOr<RegisterInfo> info = RegisterFromProto(incoming_.register_());
        if (!info.ok()) return info.status();
        if (!worker_id_.empty() && info->worker.worker_id.value() != worker_id_) {
          return absl::PermissionDeniedError(
              absl::StrCat("the certificate is ", worker_id_, "'s, not ",
                           info->worker.worker_id.value(), "'s; every worker joins by itself"));
        }
        registered_ = true;
        controller.Register(id_, *std::move(info), ContinueReading());
        return absl::OkStatus();
      }
      case v1::WorkerMessage::kHeartbeat: {
        auto held = HeldFromProto(incoming_.heartbeat().held_attempts());
        if (!held.ok()) return held.status();
        if (const auto& speeds = incoming_.heartbeat().device_speeds(); !speeds.empty()) {
          controller.SetDeviceSpeeds(id_, {speeds.begin(), speeds.end()});
        }
        controller.Heartbeat(id_, *std::move(held), incoming_.heartbeat().free_disk_bytes(),
                             ContinueReading());
        return absl::OkStatus();
      }
      case v1::WorkerMessage::kAttemptEvent: {
        absl::StatusOr<AttemptReport> report = ReportFromProto(incoming_.attempt_event());
        if (!report.ok()) return report.status();
        controller.Report(id_, *std::move(report), ContinueReading());
        return absl::OkStatus();
      }
      case v1::WorkerMessage::kAttemptOutput:
        context_.pool.Post([self = shared_from_this()] {
          self->KeepOutput();
          self->ReadNext();
        });
        return absl::OkStatus();
      case v1::WorkerMessage::kContribution: {
        auto contribution = ContributionFromProto(incoming_.contribution());
        if (!contribution.ok()) return contribution.status();
        controller.Contribute(id_, *std::move(contribution), ContinueReading());
        return absl::OkStatus();
      }
      case v1::WorkerMessage::MESSAGE_NOT_SET:
        break;
    }
    return absl::InvalidArgumentError(
        "the worker sent a message this coordinator does not know; install the same version of"
        " Offshoot on both");
  }

  // Logs and metrics are not state: what cannot be kept is dropped, and said in our own log.
  void KeepOutput() {
    const v1::AttemptOutput& output = incoming_.attempt_output();
    const JobId job_id(output.job_id());
    if (!context_.controller.AcceptsOutput(id_, job_id, output.attempt())) return;
    absl::Status status;
    const bool is_preflight = output.attempt() == 0;  // only its progress is of interest
    if (!output.log().empty() && !is_preflight) {
      status =
          context_.outputs.AppendLog(job_id, output.attempt(), output.log_offset(), output.log());
    }
    if (output.metrics_size() > 0 && output.metrics_size() <= kMaxMetricsPerMessage) {
      std::vector<StepRecord> steps;
      for (const v1::StepMetrics& metrics : output.metrics()) {
        steps.push_back(StepFromProto(metrics));
      }
      status.Update(context_.outputs.AppendMetrics(job_id, output.attempt(), steps));
    }
    if (output.has_progress()) {
      context_.controller.SetProgress(job_id, ProgressFromProto(output.progress()));
    }
    if (!status.ok())
      spdlog::warn("output of {} is dropped: {}", job_id.value(), status.ToString());
    context_.signals.Signal(job_id);
  }

  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || outgoing_.empty() || finished_) return;
    writing_ = true;
    StartWrite(&outgoing_.front());
  }

  void CloseLocked(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (closing_) return;
    closing_ = true;
    final_status_ = std::move(status);
    // A write under way ends first.
    if (!writing_) FinishLocked();
  }

  void FinishLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_) return;
    finished_ = true;
    Finish(ToGrpcStatus(final_status_));
  }

  ServiceContext& context_;
  const std::string worker_id_;  // whom the certificate is bound to; empty: nobody
  SessionId id_ = 0;
  bool registered_ = false;
  v1::WorkerMessage incoming_;  // belongs to the one who reads or handles
  absl::Mutex mutex_;
  std::deque<v1::CoordinatorMessage> outgoing_ ABSL_GUARDED_BY(mutex_);  // front: being written
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status final_status_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<Session> self_;
};

}  // namespace

SessionReactor* StartSession(ServiceContext& context, const Caller& caller) {
  auto session = std::make_shared<Session>(context, caller.worker_id);
  session->Begin();
  return session.get();
}

}  // namespace offshoot
