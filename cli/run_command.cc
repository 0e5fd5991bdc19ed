// run: a job from a file to a derivative's directory, without a cluster.
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "cli/format.h"
#include "cli/interrupt.h"
#include "cli/job_file.h"
#include "cli/job_watch.h"
#include "cli/local_cluster.h"
#include "cli/pull.h"
#include "cli/run_report.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/process.h"
#include "common/status_macros.h"

namespace offshoot::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxRepeats = 1000;  // of one spec in one state directory
constexpr absl::Duration kLook = absl::Milliseconds(100);
constexpr absl::Duration kLookInterval = absl::Milliseconds(400);
// A checkpoint of a large model to a slow disk.
constexpr absl::Duration kPauseTimeout = absl::Minutes(2);

struct RunOptions {
  std::string job_file;
  std::string state_directory;
  std::string output;
  std::string devices;
  int workers = 1;
};

std::string DefaultStateDirectory() {
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state == '/') {
    return JoinPath(state, "offshoot/run");
  }
  const char* home = std::getenv("HOME");
  return JoinPath(home != nullptr && *home != '\0' ? home : "/tmp", ".local/state/offshoot/run");
}

v1::GetJobRequest JobRequest(const std::string& job_id) {
  v1::GetJobRequest request;
  request.set_job_id(job_id);
  return request;
}

// The job of this spec in this state directory: an earlier run's if it can still succeed, else a
// new one.
absl::StatusOr<v1::Job> FindOrSubmit(Client& client, const DigestedJob& digested,
                                     const std::string& state_directory) {
  const std::string key =
      DigestOf(absl::StrCat(SpecDigest(digested.spec), " ", state_directory)).substr(7, 32);
  for (int repeat = 1; repeat <= kMaxRepeats; ++repeat) {
    ASSIGN_OR_RETURN(const std::string job_id,
                     SubmitJob(client, digested, absl::StrCat("run-", key, "-", repeat), nullptr));
    ASSIGN_OR_RETURN(const v1::Job job,
                     client.Call(client.jobs(), &v1::Jobs::Stub::GetJob, JobRequest(job_id)));
    // A job that this call made cannot have failed by now, unless it failed at once: its attempts
    // tell nothing, its age does.
    const bool earlier = absl::Now() - TimeOf(job.created_time()) > absl::Seconds(5);
    const bool ended_badly =
        job.state() == v1::JOB_STATE_FAILED || job.state() == v1::JOB_STATE_CANCELLED;
    if (!ended_badly || !earlier) return job;
  }
  return absl::ResourceExhaustedError(absl::StrCat("this job failed ", kMaxRepeats, " times in ",
                                                   state_directory,
                                                   "; mend it, or name another "
                                                   "--state-dir"));
}

// Watches one job in a local cluster and ends with an exit code.
class Run {
 public:
  Run(const Context& context, LocalCluster& cluster, Client& client, v1::Job job)
      : context_(context),
        cluster_(cluster),
        client_(client),
        job_(std::move(job)),
        display_(context) {}

  // CANCELLED when the user interrupted it.
  absl::StatusOr<v1::Job> Watch();

 private:
  absl::Status Refresh() {
    const auto job =
        client_.Call(client_.jobs(), &v1::Jobs::Stub::GetJob, JobRequest(job_.job_id()));
    if (job.ok()) job_ = *job;
    return job.status();
  }
  absl::Status WindDown();
  void ShowProgress();
  void Show(const v1::JobEvent& event) {
    if (context_.json()) return;
    display_.Event(event);
  }

  const Context& context_;
  LocalCluster& cluster_;
  Client& client_;
  v1::Job job_;
  ProgressDisplay display_;
  InterruptCounter interrupts_;
  absl::Time next_look_ = absl::InfinitePast();
};

void Run::ShowProgress() {
  if (!context_.out_is_terminal() || context_.json() || absl::Now() < next_look_) return;
  next_look_ = absl::Now() + kLookInterval;
  if (Refresh().ok()) display_.Progress(job_);
}

absl::Status Run::WindDown() {
  display_.Clear();
  context_.err() << "interrupted: checkpointing; the same command goes on from there "
                    "(interrupt again to stop at once)\n"
                 << std::flush;
  v1::PauseJobRequest request;
  request.set_job_id(job_.job_id());
  const absl::Time deadline = absl::Now() + kPauseTimeout;
  const auto paused = client_.Call(client_.jobs(), &v1::Jobs::Stub::PauseJob, request);
  if (paused.ok()) {
    job_ = *paused;
    while (interrupts_.count() < 2 && job_.state() != v1::JOB_STATE_PAUSED &&
           !IsTerminal(job_.state()) && absl::Now() < deadline && cluster_.failure().ok()) {
      absl::SleepFor(kLook);
      RETURN_IF_ERROR(Refresh());
    }
  }
  return absl::CancelledError(
      absl::StrCat("interrupted; job ", job_.job_id(), " is ", StateName(job_.state())));
}

absl::StatusOr<v1::Job> Run::Watch() {
  if (job_.state() == v1::JOB_STATE_PAUSED) {
    v1::ResumeJobRequest request;
    request.set_job_id(job_.job_id());
    ASSIGN_OR_RETURN(job_, client_.Call(client_.jobs(), &v1::Jobs::Stub::ResumeJob, request));
  }
  // An earlier run's events were shown by it.
  JobEvents events(client_, job_.job_id(), IsTerminal(job_.state()) ? 1 : job_.last_sequence());
  while (!events.ended()) {
    if (interrupts_.count() > 0) return WindDown();
    RETURN_IF_ERROR(cluster_.failure());
    const auto event = events.Next(kLook);
    if (event.has_value()) Show(*event);
    ShowProgress();
  }
  display_.Clear();
  RETURN_IF_ERROR(events.status());
  RETURN_IF_ERROR(Refresh());
  return job_;
}

absl::Status Deliver(const Context& context, Client& client, const v1::Job& job,
                     const std::string& output) {
  ASSIGN_OR_RETURN(const v1::Derivative derivative, GetDerivative(client, job.derivative_id()));
  RETURN_IF_ERROR(PullDerivative(client, derivative, output, Existing::kReplace));
  if (context.json()) {
    context.PrintJson(job);
    return absl::OkStatus();
  }
  const absl::StatusOr<std::string> lineage = ReadFile(JoinPath(output, "offshoot.json"));
  context.out() << FormatRunReport(derivative, lineage.ok() ? *lineage : "", output) << std::flush;
  return absl::OkStatus();
}

int RunJob(const Context& context, const RunOptions& options) {
  absl::StatusOr<JobSpec> spec = LoadJobFile(options.job_file);
  if (!spec.ok()) return context.Fail(spec.status());
  const std::string name = spec->publish.name.empty() ? spec->name : spec->publish.name;
  const std::string output = options.output.empty()
                                 ? JoinPath("derivatives", name.empty() ? "job" : name)
                                 : options.output;
  if (const absl::Status status = CheckPullTarget(output, Existing::kReplace); !status.ok()) {
    return context.Fail(status);
  }

  LocalClusterOptions cluster_options;
  cluster_options.state_directory =
      fs::absolute(options.state_directory.empty() ? DefaultStateDirectory()
                                                   : options.state_directory)
          .lexically_normal()
          .string();
  cluster_options.program_directory = ProgramDirectory();
  cluster_options.workers = options.workers;
  cluster_options.devices = options.devices;
  const auto cluster = LocalCluster::Start(cluster_options);
  if (!cluster.ok()) return context.Fail(cluster.status());

  const absl::StatusOr<DigestedJob> digested = DigestDatasets(*std::move(spec));
  if (!digested.ok()) return context.Fail(digested.status());
  Client client((*cluster)->address(), context.wait());
  const auto submitted = FindOrSubmit(client, *digested, cluster_options.state_directory);
  if (!submitted.ok()) return context.Fail(submitted.status());
  if (!context.json()) {
    context.out() << "job " << submitted->job_id() << "; state in "
                  << cluster_options.state_directory << "\n"
                  << std::flush;
  }
  absl::StatusOr<v1::Job> job = absl::InternalError("");
  {
    Run run(context, **cluster, client, *submitted);
    job = run.Watch();
  }
  if (!job.ok()) return context.Fail(job.status());
  if (job->state() != v1::JOB_STATE_SUCCEEDED) {
    if (context.json()) context.PrintJson(*job);
    PrintOutcome(context.err(), *job);
    return kFailed;
  }
  const absl::Status delivered = Deliver(context, client, *job, output);
  return delivered.ok() ? kOk : context.Fail(delivered);
}

}  // namespace

void AddRunCommand(CLI::App& app, Context& context) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand(
      "run", "Train a job on this machine, without a cluster, and fetch its derivative");
  command->add_option("job-file", options->job_file, "the job file (docs/job-file.md)")
      ->required()
      ->type_name("JOB.yaml");
  command
      ->add_option("--state-dir", options->state_directory,
                   "checkpoints, caches and logs; the same again goes on with the same job "
                   "(default: ~/.local/state/offshoot/run)")
      ->type_name("DIR");
  command
      ->add_option("--output", options->output,
                   "where the derivative's files go (default: derivatives/NAME)")
      ->type_name("DIR");
  command->add_option("--workers", options->workers, "workers to start")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command
      ->add_option("--devices", options->devices,
                   "such as cpu:0@2 (threads after the @) or cuda:0,cuda:1; default: what is there")
      ->type_name("DEVICES");
  context.AddOutputOption(command);
  context.SetAction(command, [&context, options] { return RunJob(context, *options); });
}

}  // namespace offshoot::cli
