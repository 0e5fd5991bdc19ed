// watch, logs, metrics: what a job does, as it does it.
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "cli/format.h"
#include "cli/job_watch.h"

namespace offshoot::cli {
namespace {

struct StreamOptions {
  std::string job_id;
  std::int64_t from = 0;
  std::int32_t attempt = 0;
  bool follow = false;
};

// Reads a server's stream to its end, again after a lost connection; `take` gives false for what it
// had before.
template <typename Request, typename Message>
absl::Status ReadStream(Client& client, const Request& request,
                        std::unique_ptr<grpc::ClientReader<Message>> (v1::Jobs::Stub::*method)(
                            grpc::ClientContext*, const Request&),
                        const std::function<bool(Message&)>& take) {
  bool progressed = false;
  return client.Retry(
      [&] {
        grpc::ClientContext context;
        const auto stream = (client.jobs().*method)(&context, request);
        Message message;
        while (stream->Read(&message)) progressed = take(message) || progressed;
        return FromGrpcStatus(stream->Finish());
      },
      [&] { return std::exchange(progressed, false); });
}

int Logs(const Context& context, const StreamOptions& options) {
  Client& client = context.client();
  v1::StreamLogsRequest request;
  request.set_job_id(options.job_id);
  request.set_follow(options.follow);
  request.set_attempt(options.attempt);
  std::map<std::int32_t, std::int64_t> next_offsets;  // by attempt
  const auto take = [&](v1::LogChunk& chunk) {
    std::int64_t& next = next_offsets[chunk.attempt()];
    const std::int64_t end = chunk.offset() + static_cast<std::int64_t>(chunk.data().size());
    if (end <= next) return false;
    if (chunk.offset() < next) {
      chunk.mutable_data()->erase(0, static_cast<std::size_t>(next - chunk.offset()));
      chunk.set_offset(next);
    }
    next = end;
    if (context.json()) {
      context.PrintJsonLine(chunk);
    } else {
      context.out() << chunk.data() << std::flush;
    }
    return true;
  };
  const absl::Status status = ReadStream<v1::StreamLogsRequest, v1::LogChunk>(
      client, request, &v1::Jobs::Stub::StreamLogs, take);
  return status.ok() ? kOk : context.Fail(status);
}

std::string MetricsLine(const v1::StepMetrics& metrics) {
  if (metrics.has_eval_loss()) {
    return absl::StrFormat("%7d  %6.2f  held-out loss %.4f\n", metrics.step(), metrics.epoch(),
                           metrics.eval_loss());
  }
  return absl::StrFormat("%7d  %6.2f  %9.4f  %9.4f  %10.3e  %9d  %8.3f  %8.0f\n", metrics.step(),
                         metrics.epoch(), metrics.train_loss(), metrics.grad_norm(),
                         metrics.learning_rate(), metrics.tokens(), metrics.step_seconds(),
                         metrics.tokens_per_second());
}

int Metrics(const Context& context, const StreamOptions& options) {
  Client& client = context.client();
  v1::StreamMetricsRequest request;
  request.set_job_id(options.job_id);
  request.set_follow(options.follow);
  request.set_from_step(options.from);
  std::pair<std::int32_t, std::pair<std::int64_t, bool>> newest{0, {0, false}};
  bool first = true;
  const auto take = [&](v1::StepMetrics& metrics) {
    // Attempt after attempt, step after step, a step's evaluation after its training.
    const std::pair<std::int32_t, std::pair<std::int64_t, bool>> place{
        metrics.attempt(), {metrics.step(), metrics.has_eval_loss()}};
    if (!first && place <= newest) return false;
    newest = place;
    if (context.json()) {
      context.PrintJsonLine(metrics);
    } else {
      if (first) {
        context.out() << absl::StrFormat("%7s  %6s  %9s  %9s  %10s  %9s  %8s  %8s\n", "STEP",
                                         "EPOCH", "LOSS", "GRAD NORM", "RATE", "TOKENS", "SECONDS",
                                         "TOK/S");
      }
      context.out() << MetricsLine(metrics) << std::flush;
    }
    first = false;
    return true;
  };
  const absl::Status status = ReadStream<v1::StreamMetricsRequest, v1::StepMetrics>(
      client, request, &v1::Jobs::Stub::StreamMetrics, take);
  return status.ok() ? kOk : context.Fail(status);
}

int Watch(const Context& context, const StreamOptions& options) {
  Client& client = context.client();
  return FollowJob(context, client, options.job_id, options.from);
}

}  // namespace

void AddStreamCommands(CLI::App& app, Context& context) {
  auto options = std::make_shared<StreamOptions>();
  CLI::App* watch = app.add_subcommand(
      "watch", "Show a job's events, and on a terminal its progress, until it ends");
  watch->add_option("--from", options->from, "the first event's sequence number")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  context.SetAction(watch, [&context, options] { return Watch(context, *options); });

  CLI::App* logs = app.add_subcommand("logs", "Print the trainer's log");
  logs->add_flag("-f,--follow", options->follow, "go on until the job ends");
  logs->add_option("--attempt", options->attempt, "only this attempt's")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  context.SetAction(logs, [&context, options] { return Logs(context, *options); });

  CLI::App* metrics = app.add_subcommand("metrics", "Print a line of figures for each step");
  metrics->add_flag("-f,--follow", options->follow, "go on until the job ends");
  metrics->add_option("--from-step", options->from, "the first step")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  context.SetAction(metrics, [&context, options] { return Metrics(context, *options); });

  for (CLI::App* command : {watch, logs, metrics}) {
    command->add_option("job", options->job_id, "the job's id")->required()->type_name("JOB");
    context.AddClientOptions(command);
  }
}

}  // namespace offshoot::cli
