// A server stream that is pulled: Produce is asked for the next message whenever the one before has
// gone out, on a pool's thread, so that a slow reader costs no thread and no memory and a disk may
// be read. A stream with nothing to say waits until Signal.
//
//      ┌────────── Signal ──────────┐
//      ▼                            │
//   pumping ──kMessage──▶ writing   │        (one state at a time; Produce never runs twice at
//   once)
//      │  ▲                  │      │
//      │  └──── written ─────┘      │
//      ├──kWait──▶ idle ────────────┘
//      └──kEnd, cancelled──▶ finished
//
// Owns itself: made by Start, freed when gRPC is done with it.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/grpc_status.h"
#include "coordinator/service/context.h"

namespace offshoot {

enum class Pull { kMessage, kWait, kEnd };

template <typename Response>
class PullStream : public grpc::ServerWriteReactor<Response>,
                   public std::enable_shared_from_this<PullStream<Response>> {
 public:
  // Fills *response (kMessage), or sets *status (kEnd; OK by default).
  virtual Pull Produce(Response* response, absl::Status* status) = 0;

  template <typename Stream>
  static grpc::ServerWriteReactor<Response>* Start(std::shared_ptr<Stream> stream) {
    stream->self_ = stream;
    const bool too_many = stream->context_.counters.streams_open.fetch_add(1) >= kMaxStreams;
    if (too_many) {
      stream->FinishOnce(absl::ResourceExhaustedError(
          absl::StrCat("the coordinator serves ", kMaxStreams,
                       " streams already; close some or try again later")));
    } else {
      stream->Post();
    }
    return stream.get();
  }

  // Something may be there to produce. Thread-safe.
  void Signal() {
    absl::MutexLock lock(&mutex_);
    pending_ = true;
    if (state_ != State::kIdle) return;
    state_ = State::kPumping;
    Post();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    if (!ok) cancelled_ = true;
    state_ = State::kPumping;
    Post();
  }

  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    if (state_ != State::kIdle) return;
    state_ = State::kPumping;
    Post();
  }

  void OnDone() override {
    context_.counters.streams_open.fetch_sub(1);
    self_.reset();
  }

 protected:
  explicit PullStream(ServiceContext& context) : context_(context) {}
  ServiceContext& context_;

 private:
  enum class State { kPumping, kWriting, kIdle, kFinished };

  void Post() {
    context_.pool.Post([self = this->shared_from_this()] { self->Pump(); });
  }

  void Pump() {
    for (;;) {
      {
        absl::MutexLock lock(&mutex_);
        if (state_ == State::kFinished) return;
        pending_ = false;
        if (cancelled_) {
          state_ = State::kFinished;
          this->Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the reader has gone"));
          return;
        }
      }
      response_.Clear();
      absl::Status status;
      const Pull pull = Produce(&response_, &status);
      if (pull == Pull::kEnd) {
        FinishOnce(status);
        return;
      }
      absl::MutexLock lock(&mutex_);
      if (pull == Pull::kMessage) {
        state_ = State::kWriting;
        this->StartWrite(&response_);
        return;
      }
      if (!pending_ && !cancelled_) {
        state_ = State::kIdle;
        return;
      }
    }
  }

  void FinishOnce(const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    if (state_ == State::kFinished) return;
    state_ = State::kFinished;
    this->Finish(ToGrpcStatus(status));
  }

  absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kPumping;
  bool pending_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  Response response_;  // belongs to whoever pumps or writes
  std::shared_ptr<PullStream> self_;
};

}  // namespace offshoot
