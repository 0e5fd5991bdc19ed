// submit, list, status, cancel, pause, resume.
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "cli/format.h"
#include "cli/job_file.h"
#include "cli/job_watch.h"
#include "common/ids.h"
#include "common/quantity.h"

namespace offshoot::cli {
namespace {

struct SubmitOptions {
  std::string job_file;
  std::string request_id;
  bool follow = false;
};

int Submit(const Context& context, const SubmitOptions& options) {
  absl::StatusOr<JobSpec> spec = LoadJobFile(options.job_file);
  if (!spec.ok()) return context.Fail(spec.status());
  const absl::StatusOr<DigestedJob> job = DigestDatasets(*std::move(spec));
  if (!job.ok()) return context.Fail(job.status());
  Client& client = context.client();
  const std::string request_id =
      options.request_id.empty() ? MakeRandomId("cli-") : options.request_id;
  const auto job_id = SubmitJob(client, *job, request_id, nullptr);
  if (!job_id.ok()) return context.Fail(job_id.status());
  if (context.json()) {
    v1::SubmitJobResponse response;
    response.set_job_id(*job_id);
    context.PrintJsonLine(response);
  } else {
    context.out() << *job_id << "\n" << std::flush;
  }
  return options.follow ? FollowJob(context, client, *job_id, 1) : kOk;
}

struct ListJobsOptions {
  std::vector<std::string> states;
  std::string team;
  std::string name;
  std::int64_t limit = 50;
};

std::vector<std::string> JobRow(const v1::Job& job, absl::Time now) {
  const v1::Progress& progress = job.progress();
  return {
      job.job_id(),
      job.name().empty() ? "-" : job.name(),
      StateName(job.state()),
      progress.total_steps() > 0 ? absl::StrCat(progress.step(), "/", progress.total_steps()) : "-",
      progress.step() > 0 ? FormatLoss(progress.train_loss()) : "-",
      FormatAge(job.created_time(), now),
      job.message()};
}

int ListJobs(const Context& context, const ListJobsOptions& options) {
  constexpr std::int64_t kLargestPage = 1000;
  Client& client = context.client();
  v1::ListJobsRequest request;
  for (const std::string& name : options.states) {
    const auto state = ParseJobState(name);
    if (!state.ok()) return context.Fail(state.status());
    request.add_states(*state);
  }
  request.set_team(options.team);
  request.set_name_contains(options.name);
  v1::ListJobsResponse all;
  while (all.jobs_size() < options.limit) {
    request.set_page_size(
        static_cast<int>(std::min(kLargestPage, options.limit - all.jobs_size())));
    const auto page = client.Call(client.jobs(), &v1::Jobs::Stub::ListJobs, request);
    if (!page.ok()) return context.Fail(page.status());
    all.mutable_jobs()->MergeFrom(page->jobs());
    all.set_next_page_token(page->next_page_token());
    request.set_page_token(page->next_page_token());
    if (page->next_page_token().empty()) break;
  }
  if (context.json()) {
    context.PrintJson(all);
    return kOk;
  }
  std::vector<std::vector<std::string>> rows{
      {"JOB", "NAME", "STATE", "STEP", "LOSS", "AGE", "MESSAGE"}};
  for (const v1::Job& job : all.jobs()) rows.push_back(JobRow(job, absl::Now()));
  context.out() << FormatTable(rows) << std::flush;
  if (!all.next_page_token().empty()) {
    context.err() << "there are more jobs; raise --limit to see them\n";
  }
  return kOk;
}

// ", starts in about 5m"
std::string FormatStartEstimate(const v1::Job& job) {
  if (!job.has_estimated_start_time()) return "";
  const absl::Duration wait = TimeOf(job.estimated_start_time()) - absl::Now();
  if (wait < absl::Seconds(1)) return ", starts as soon as it can";
  return absl::StrCat(", starts in about ", FormatSeconds(absl::ToInt64Seconds(wait)));
}

// The workers of a gang, and the devices on each.
std::pair<std::string, std::string> FormatMembers(const v1::Attempt& attempt) {
  if (attempt.members_size() < 2) {
    return {attempt.worker_name().empty() ? attempt.worker_id() : attempt.worker_name(),
            absl::StrJoin(attempt.devices(), ",")};
  }
  std::vector<std::string> workers;
  std::vector<std::string> devices;
  for (const v1::AttemptMember& member : attempt.members()) {
    workers.push_back(member.worker_name());
    devices.push_back(absl::StrJoin(member.devices(), ","));
  }
  return {absl::StrJoin(workers, " + "), absl::StrJoin(devices, " + ")};
}

void PrintStatus(std::ostream& out, const v1::Job& job) {
  std::vector<std::vector<std::string>> rows{{"job", job.job_id()},
                                             {"name", job.name().empty() ? "-" : job.name()},
                                             {"team", job.team().empty() ? "-" : job.team()},
                                             {"state", FormatProgress(job)},
                                             {"created", FormatTime(job.created_time())},
                                             {"started", FormatTime(job.started_time())},
                                             {"finished", FormatTime(job.finished_time())}};
  const v1::Progress& progress = job.progress();
  if (progress.checkpoint_step() > 0) {
    rows.push_back({"checkpoint", absl::StrCat("step ", progress.checkpoint_step())});
  }
  if (progress.has_base_eval_loss() && progress.has_eval_loss()) {
    rows.push_back(
        {"held-out loss", absl::StrCat("base ", FormatLoss(progress.base_eval_loss()),
                                       ", derivative ", FormatLoss(progress.eval_loss()))});
  }
  if (!job.derivative_id().empty()) rows.push_back({"derivative", job.derivative_id()});
  if (!job.reason_code().empty()) rows.push_back({"reason", job.reason_code()});
  if (!job.message().empty()) rows.push_back({"message", job.message()});
  if (job.queue_place() > 0) {
    rows.push_back({"queue", absl::StrCat("place ", job.queue_place(), FormatStartEstimate(job))});
  }
  if (!job.culprit().empty()) rows.push_back({"culprit", job.culprit()});
  out << FormatTable(rows);
  if (job.attempts_size() > 0) {
    std::vector<std::vector<std::string>> attempts{
        {"ATTEMPT", "WORKER", "DEVICES", "STEPS", "STARTED", "FINISHED", "ENDED BY"}};
    for (const v1::Attempt& attempt : job.attempts()) {
      auto [workers, devices] = FormatMembers(attempt);
      attempts.push_back({absl::StrCat(attempt.number()), std::move(workers), std::move(devices),
                          attempt.first_step() > 0
                              ? absl::StrCat(attempt.first_step(), "-", attempt.last_step())
                              : "-",
                          FormatTime(attempt.started_time()), FormatTime(attempt.finished_time()),
                          attempt.message().empty()
                              ? attempt.reason_code()
                              : absl::StrCat(attempt.reason_code(), ": ", attempt.message())});
    }
    out << "\n" << FormatTable(attempts);
  }
  if (job.state() == v1::JOB_STATE_FAILED && !job.log_tail().empty()) {
    out << "\nlast log lines:\n" << job.log_tail() << (job.log_tail().back() == '\n' ? "" : "\n");
  }
  out << std::flush;
}

int Status(const Context& context, const std::string& job_id) {
  Client& client = context.client();
  v1::GetJobRequest request;
  request.set_job_id(job_id);
  const auto job = client.Call(client.jobs(), &v1::Jobs::Stub::GetJob, request);
  if (!job.ok()) return context.Fail(job.status());
  if (context.json()) {
    context.PrintJson(*job);
  } else {
    PrintStatus(context.out(), *job);
  }
  return kOk;
}

// cancel, pause and resume do one call for each job and go on after a failed one.
template <typename Request>
int ForEachJob(const Context& context, const std::vector<std::string>& job_ids, Request request,
               grpc::Status (v1::Jobs::Stub::*method)(grpc::ClientContext*, const Request&,
                                                      v1::Job*)) {
  Client& client = context.client();
  int exit_code = kOk;
  for (const std::string& job_id : job_ids) {
    request.set_job_id(job_id);
    const auto job = client.Call(client.jobs(), method, request);
    if (!job.ok()) {
      exit_code = context.Fail(job.status());
    } else if (context.json()) {
      context.PrintJsonLine(*job);
    } else {
      context.out() << "job " << job->job_id() << " " << StateName(job->state())
                    << (job->message().empty() ? "" : absl::StrCat(": ", job->message())) << "\n"
                    << std::flush;
    }
  }
  return exit_code;
}

void AddListCommand(CLI::App& app, Context& context) {
  auto options = std::make_shared<ListJobsOptions>();
  CLI::App* command = app.add_subcommand("list", "List jobs, newest first");
  command->add_option("--state", options->states, "only jobs in these states")
      ->delimiter(',')
      ->type_name("STATE,...");
  command->add_option("--team", options->team, "only this team's");
  command->add_option("--name", options->name, "only those with this in their name");
  command->add_option("--limit", options->limit, "at most so many")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  context.AddClientOptions(command);
  context.SetAction(command, [&context, options] { return ListJobs(context, *options); });
}

}  // namespace

void AddSubmitCommand(CLI::App& app, Context& context) {
  auto options = std::make_shared<SubmitOptions>();
  CLI::App* command = app.add_subcommand("submit", "Submit a job and print its id");
  command->add_option("job-file", options->job_file, "the job file (docs/job-file.md)")
      ->required()
      ->type_name("JOB.yaml");
  command->add_flag("--follow", options->follow, "watch the job until it ends");
  command
      ->add_option("--request-id", options->request_id,
                   "of your choice: the same again gives the same job, not another")
      ->type_name("ID");
  context.AddClientOptions(command);
  context.SetAction(command, [&context, options] { return Submit(context, *options); });
}

void AddJobCommands(CLI::App& app, Context& context) {
  AddListCommand(app, context);

  auto job_id = std::make_shared<std::string>();
  CLI::App* status = app.add_subcommand("status", "Show a job: state, progress, attempts");
  status->add_option("job", *job_id, "the job's id")->required()->type_name("JOB");
  context.AddClientOptions(status);
  context.SetAction(status, [&context, job_id] { return Status(context, *job_id); });

  auto job_ids = std::make_shared<std::vector<std::string>>();
  auto reason = std::make_shared<std::string>();
  CLI::App* cancel = app.add_subcommand("cancel", "Cancel jobs; their processes end within 5 s");
  cancel->add_option("--reason", *reason, "shown with the job")->type_name("TEXT");
  context.SetAction(cancel, [&context, job_ids, reason] {
    v1::CancelJobRequest request;
    request.set_reason(*reason);
    return ForEachJob(context, *job_ids, request, &v1::Jobs::Stub::CancelJob);
  });
  CLI::App* pause = app.add_subcommand("pause", "Checkpoint jobs and free their devices");
  context.SetAction(pause, [&context, job_ids] {
    return ForEachJob(context, *job_ids, v1::PauseJobRequest(), &v1::Jobs::Stub::PauseJob);
  });
  CLI::App* resume = app.add_subcommand("resume", "Go on with paused jobs");
  context.SetAction(resume, [&context, job_ids] {
    return ForEachJob(context, *job_ids, v1::ResumeJobRequest(), &v1::Jobs::Stub::ResumeJob);
  });
  for (CLI::App* command : {cancel, pause, resume}) {
    command->add_option("job", *job_ids, "the jobs' ids")->required()->type_name("JOB...");
    context.AddClientOptions(command);
  }
}

}  // namespace offshoot::cli
