#include "coordinator/service/job_streams.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "coordinator/service/convert.h"
#include "coordinator/service/pull_stream.h"

namespace offshoot {
namespace {

constexpr int kEventsPerRead = 256;
constexpr std::size_t kLogBytesPerMessage = 64 << 10;
constexpr std::size_t kMetricsBytesPerRead = 256 << 10;

// Hears of the job's news as long as it lives.
template <typename Response>
class JobStream : public PullStream<Response> {
 protected:
  JobStream(ServiceContext& context, JobId job_id)
      : PullStream<Response>(context), job_id_(std::move(job_id)) {}

  // Before the first read, so that nothing falls between reading and waiting.
  void Listen() {
    if (handle_ != nullptr) return;
    handle_ = this->context_.signals.Watch(job_id_, [weak = this->weak_from_this()] {
      if (auto stream = weak.lock()) stream->Signal();
    });
  }

  const JobId job_id_;

 private:
  JobSignals::Handle handle_;
};

class WatchStream : public JobStream<v1::JobEvent> {
 public:
  WatchStream(ServiceContext& context, const v1::WatchJobRequest& request)
      : JobStream(context, JobId(request.job_id())),
        next_(std::max<std::int64_t>(1, request.from_sequence())) {}

  Pull Produce(v1::JobEvent* response, absl::Status* status) override {
    Listen();
    if (ended_) return Pull::kEnd;
    if (events_.empty()) {
      // The state first: events that came before it are then seen.
      const absl::StatusOr<JobRecord> job = context_.store.GetJob(job_id_);
      if (!job.ok()) {
        *status = job.status();
        return Pull::kEnd;
      }
      auto events = context_.store.ListEvents(job_id_, next_, kEventsPerRead);
      if (!events.ok()) {
        *status = events.status();
        return Pull::kEnd;
      }
      events_.assign(std::make_move_iterator(events->begin()),
                     std::make_move_iterator(events->end()));
      if (events_.empty()) return IsTerminal(job->state) ? Pull::kEnd : Pull::kWait;
    }
    *response = ToProto(events_.front());
    next_ = events_.front().sequence + 1;
    ended_ = IsTerminal(events_.front().state);
    events_.pop_front();
    return Pull::kMessage;
  }

 private:
  std::int64_t next_;
  bool ended_ = false;
  std::deque<JobEventRecord> events_;
};

class LogStream : public JobStream<v1::LogChunk> {
 public:
  LogStream(ServiceContext& context, const v1::StreamLogsRequest& request)
      : JobStream(context, JobId(request.job_id())),
        follow_(request.follow()),
        only_(request.attempt()),
        attempt_(std::max(1, request.attempt())),
        offset_(only_ > 0 ? std::max<std::int64_t>(0, request.from_offset()) : 0) {}

  Pull Produce(v1::LogChunk* response, absl::Status* status) override {
    Listen();
    const absl::StatusOr<JobRecord> job = context_.store.GetJob(job_id_);
    if (!job.ok()) {
      *status = job.status();
      return Pull::kEnd;
    }
    for (;;) {
      absl::StatusOr<std::string> data =
          context_.outputs.ReadLog(job_id_, attempt_, offset_, kLogBytesPerMessage);
      if (!data.ok()) {
        *status = data.status();
        return Pull::kEnd;
      }
      if (!data->empty()) {
        response->set_attempt(attempt_);
        response->set_offset(offset_);
        offset_ += static_cast<std::int64_t>(data->size());
        response->set_data(*std::move(data));
        return Pull::kMessage;
      }
      if (only_ == 0 && attempt_ < job->attempt_number()) {
        ++attempt_;
        offset_ = 0;
        continue;
      }
      const bool over = IsTerminal(job->state) || (only_ > 0 && only_ < job->attempt_number());
      return over || !follow_ ? Pull::kEnd : Pull::kWait;
    }
  }

 private:
  const bool follow_;
  const std::int32_t only_;
  std::int32_t attempt_;
  std::int64_t offset_;
};

class MetricsStream : public JobStream<v1::StepMetrics> {
 public:
  MetricsStream(ServiceContext& context, const v1::StreamMetricsRequest& request)
      : JobStream(context, JobId(request.job_id())),
        follow_(request.follow()),
        from_step_(request.from_step()) {}

  Pull Produce(v1::StepMetrics* response, absl::Status* status) override {
    Listen();
    while (steps_.empty()) {
      const absl::StatusOr<JobRecord> job = context_.store.GetJob(job_id_);
      if (!job.ok()) {
        *status = job.status();
        return Pull::kEnd;
      }
      auto read = context_.outputs.ReadMetrics(job_id_, attempt_, offset_, kMetricsBytesPerRead);
      if (!read.ok()) {
        *status = read.status();
        return Pull::kEnd;
      }
      const bool progressed = read->second > offset_;
      offset_ = read->second;
      for (StepRecord& step : read->first) {
        if (step.step >= from_step_) steps_.push_back(std::move(step));
      }
      if (progressed) continue;
      if (attempt_ < job->attempt_number()) {
        ++attempt_;
        offset_ = 0;
        continue;
      }
      return IsTerminal(job->state) || !follow_ ? Pull::kEnd : Pull::kWait;
    }
    *response = ToProto(steps_.front(), attempt_);
    steps_.pop_front();
    return Pull::kMessage;
  }

 private:
  const bool follow_;
  const std::int64_t from_step_;
  std::int32_t attempt_ = 1;
  std::int64_t offset_ = 0;
  std::deque<StepRecord> steps_;
};

}  // namespace

grpc::ServerWriteReactor<v1::JobEvent>* StartWatch(ServiceContext& context,
                                                   const v1::WatchJobRequest& request) {
  return WatchStream::Start(std::make_shared<WatchStream>(context, request));
}

grpc::ServerWriteReactor<v1::LogChunk>* StartLogs(ServiceContext& context,
                                                  const v1::StreamLogsRequest& request) {
  return LogStream::Start(std::make_shared<LogStream>(context, request));
}

grpc::ServerWriteReactor<v1::StepMetrics>* StartMetrics(ServiceContext& context,
                                                        const v1::StreamMetricsRequest& request) {
  return MetricsStream::Start(std::make_shared<MetricsStream>(context, request));
}

}  // namespace offshoot
