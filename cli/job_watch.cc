#include "cli/job_watch.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cli/exit_code.h"
#include "cli/format.h"

namespace offshoot::cli {
namespace {

// Between two looks at a job's progress.
constexpr absl::Duration kProgressInterval = absl::Milliseconds(400);
constexpr absl::Duration kRanksInterval = absl::Seconds(5);

}  // namespace

JobEvents::JobEvents(Client& client, std::string job_id, std::int64_t from_sequence)
    : client_(client),
      job_id_(std::move(job_id)),
      next_sequence_(std::max<std::int64_t>(1, from_sequence)),
      reader_([this] { Read(); }) {}

JobEvents::~JobEvents() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (stream_ != nullptr) stream_->TryCancel();
  }
  reader_.join();
}

void JobEvents::Read() {
  bool progressed = false;
  bool unfinished = false;  // the newest event's state is not the last
  const auto read_stream = [&]() -> absl::Status {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_job_id(job_id_);
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return absl::CancelledError("stopped");
      stream_ = &context;
      request.set_from_sequence(next_sequence_);
    }
    const auto stream = client_.jobs().WatchJob(&context, request);
    v1::JobEvent event;
    while (stream->Read(&event)) {
      absl::MutexLock lock(&mutex_);
      const auto has_room = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return stopping_ || events_.size() < kMaxWaiting;
      };
      mutex_.Await(absl::Condition(&has_room));
      if (stopping_) break;
      if (event.sequence() < next_sequence_) continue;
      next_sequence_ = event.sequence() + 1;
      progressed = true;
      unfinished = !IsTerminal(event.state());
      events_.push_back(event);
    }
    {
      absl::MutexLock lock(&mutex_);
      stream_ = nullptr;
    }
    const absl::Status status = FromGrpcStatus(stream->Finish());
    if (status.ok() && unfinished) return absl::UnavailableError("the stream ended early");
    return status;
  };
  const auto stopping = [this] {
    absl::MutexLock lock(&mutex_);
    return stopping_;
  };
  const absl::Status status = client_.Retry(
      read_stream, [&] { return std::exchange(progressed, false); }, stopping);
  absl::MutexLock lock(&mutex_);
  status_ = status;
  ended_ = true;
}

std::optional<v1::JobEvent> JobEvents::Next(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(this, &JobEvents::HasNews), timeout);
  if (events_.empty()) return std::nullopt;
  v1::JobEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

bool JobEvents::ended() {
  absl::MutexLock lock(&mutex_);
  return ended_ && events_.empty();
}

absl::Status JobEvents::status() {
  absl::MutexLock lock(&mutex_);
  return status_;
}

void ProgressDisplay::Event(const v1::JobEvent& event) {
  Clear();
  if (context_.json()) {
    context_.PrintJsonLine(event);
  } else {
    context_.out() << FormatEvent(event) << "\n" << std::flush;
  }
}

void ProgressDisplay::Progress(const v1::Job& job) {
  if (!context_.out_is_terminal() || context_.json()) return;
  std::string line = FormatProgress(job);
  if (line == line_) return;
  // Back to the line's start, the new text, and the rest of the old one erased.
  context_.out() << "\r" << line << "\x1b[K" << std::flush;
  line_ = std::move(line);
}

void ProgressDisplay::Clear() {
  if (line_.empty()) return;
  context_.out() << "\r\x1b[K" << std::flush;
  line_.clear();
}

int FollowJob(const Context& context, Client& client, const std::string& job_id,
              std::int64_t from_sequence) {
  v1::GetJobRequest request;
  request.set_job_id(job_id);
  JobEvents events(client, job_id, from_sequence);
  ProgressDisplay display(context);
  absl::Time next_look = absl::Now();
  while (!events.ended()) {
    const auto event = events.Next(kProgressInterval);
    if (event.has_value()) display.Event(*event);
    if (context.json() || absl::Now() < next_look) continue;
    // In a file only the ranks of a gang are told of now and then: nothing else shows their
    // balance.
    next_look = absl::Now() + (context.out_is_terminal() ? kProgressInterval : kRanksInterval);
    const auto job = client.Call(client.jobs(), &v1::Jobs::Stub::GetJob, request);
    if (!job.ok()) continue;
    if (context.out_is_terminal()) {
      display.Progress(*job);
    } else if (job->state() == v1::JOB_STATE_RUNNING && job->progress().ranks_size() > 1) {
      context.out() << FormatProgress(*job) << "\n" << std::flush;
    }
  }
  display.Clear();
  if (!events.status().ok()) return context.Fail(events.status());
  const auto job = client.Call(client.jobs(), &v1::Jobs::Stub::GetJob, request);
  if (!job.ok()) return context.Fail(job.status());
  if (!context.json()) PrintOutcome(context.out(), *job);
  return job->state() == v1::JOB_STATE_SUCCEEDED ? kOk : kFailed;
}

void PrintOutcome(std::ostream& out, const v1::Job& job) {
  out << "job " << job.job_id() << " " << StateName(job.state());
  if (!job.derivative_id().empty()) out << ": derivative " << job.derivative_id();
  if (!job.message().empty() && job.state() != v1::JOB_STATE_SUCCEEDED) {
    out << ": " << job.message();
  }
  if (!job.reason_code().empty() && job.state() == v1::JOB_STATE_FAILED) {
    out << " [" << job.reason_code() << "]";
  }
  out << "\n";
  if (job.state() != v1::JOB_STATE_FAILED) return;
  if (!job.culprit().empty()) out << "culprit: " << job.culprit() << "\n";
  if (!job.log_tail().empty()) {
    out << "last log lines:\n  "
        << absl::StrReplaceAll(absl::StripTrailingAsciiWhitespace(job.log_tail()), {{"\n", "\n  "}})
        << "\n";
  }
}

}  // namespace offshoot::cli
