// Measures of the control plane with many jobs, watchers or workers, each against a coordinator
// process of its own on loopback. Prints one line of JSON.
//   train-start  from the call of SubmitJob until the process of `offshoot-trainer train` begins,
//   on
//                a real worker that is idle, with the check (preflight) cached
//   jobs         many jobs of a trainer that ends at once, until all have succeeded
//   watchers     many WatchJob streams of one job: from the answer to a change until all have told
//   it workers      many workers, each with a connection of its own and a heartbeat every 10 s: the
//                coordinator's processor time and memory
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "bench/bench_cluster.h"
#include "offshoot/v1/cluster.grpc.pb.h"

namespace offshoot {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kPatience = absl::Minutes(5);

// A copy of the scripted trainer with a folder for its stamps.
std::string InstallTrainer(const Cluster& cluster) {
  const fs::path folder = fs::path(cluster.directory()) / "trainer";
  fs::create_directories(folder / "stamps");
  fs::copy_file(JoinPath(ProgramDirectory(), "scripted_trainer"), folder / "offshoot-trainer");
  return folder / "offshoot-trainer";
}

v1::Job Get(v1::Jobs::Stub& jobs, const std::string& job_id) {
  grpc::ClientContext context;
  v1::GetJobRequest request;
  request.set_job_id(job_id);
  v1::Job job;
  const grpc::Status status = jobs.GetJob(&context, request, &job);
  if (!status.ok()) Die(status.error_message());
  return job;
}

// Reads the job's events until one leaves it in this state or a terminal one.
void AwaitState(v1::Jobs::Stub& jobs, const std::string& job_id, v1::JobState state) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
  v1::WatchJobRequest request;
  request.set_job_id(job_id);
  auto reader = jobs.WatchJob(&context, request);
  v1::JobEvent event;
  while (reader->Read(&event)) {
    if (event.state() == state) {
      context.TryCancel();
      return;
    }
  }
  Die(absl::StrCat("job ", job_id, " came to another end: ", Get(jobs, job_id).message()));
}

int MeasureTrainStart(Cluster& cluster, int count) {
  const std::string trainer = InstallTrainer(cluster);
  cluster.StartWorker(trainer, 1);
  auto jobs = v1::Jobs::NewStub(cluster.Connect());
  std::vector<double> times;
  for (int i = 0; i <= count; ++i) {
    const absl::Time start = absl::Now();
    const std::string job_id = Submit(*jobs, cluster.Spec(), "");
    AwaitState(*jobs, job_id, v1::JOB_STATE_SUCCEEDED);
    const auto stamp = ReadFile((fs::path(trainer).parent_path() / "stamps" / job_id).string());
    std::int64_t micros = 0;
    if (!stamp.ok() || !absl::SimpleAtoi(*stamp, &micros)) Die("the trainer left no stamp");
    // The first job fills the caches.
    if (i > 0) {
      times.push_back(absl::ToDoubleMilliseconds(absl::FromUnixMicros(micros) - start));
    }
  }
  absl::PrintF("{\"submit_to_train_median_ms\": %.2f, \"p99_ms\": %.2f, \"jobs\": %d}\n",
               Quantile(times, 0.5), Quantile(times, 0.99), times.size());
  return 0;
}

int MeasureJobs(Cluster& cluster, int count, int devices) {
  cluster.StartWorker(InstallTrainer(cluster), devices);
  auto jobs = v1::Jobs::NewStub(cluster.Connect());
  AwaitState(*jobs, Submit(*jobs, cluster.Spec(), ""), v1::JOB_STATE_SUCCEEDED);
  const auto start = SteadyClock::now();
  std::vector<std::string> job_ids;
  for (int i = 0; i < count; ++i) job_ids.push_back(Submit(*jobs, cluster.Spec(), ""));
  const double submitted = MillisecondsSince(start) * 1e-3;
  for (const std::string& job_id : job_ids) AwaitState(*jobs, job_id, v1::JOB_STATE_SUCCEEDED);
  const double seconds = MillisecondsSince(start) * 1e-3;
  absl::PrintF(
      "{\"jobs\": %d, \"devices\": %d, \"seconds\": %.2f, \"seconds_to_submit\": %.2f, "
      "\"jobs_per_second\": %.1f}\n",
      count, devices, seconds, submitted, count / seconds);
  return 0;
}

// One stream; tells when it has seen an event of this sequence.
class Watcher : public grpc::ClientReadReactor<v1::JobEvent> {
 public:
  Watcher(v1::Jobs::Stub& jobs, const std::string& job_id) {
    request_.set_job_id(job_id);
    jobs.async()->WatchJob(&context_, &request_, this);
    StartRead(&event_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    {
      absl::MutexLock lock(&mutex_);
      seen_ = event_.sequence();
      time_ = SteadyClock::now();
    }
    StartRead(&event_);
  }
  void OnDone(const grpc::Status&) override {
    absl::MutexLock lock(&mutex_);
    done_ = true;
  }
  SteadyClock::time_point Await(std::int64_t sequence) {
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return seen_ >= sequence; };
    absl::MutexLock lock(&mutex_);
    if (!mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Minutes(1))) {
      Die("a watcher was not told of an event");
    }
    return time_;
  }
  void Stop() {
    context_.TryCancel();
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
  }

 private:
  grpc::ClientContext context_;
  v1::WatchJobRequest request_;
  v1::JobEvent event_;
  absl::Mutex mutex_;
  std::int64_t seen_ ABSL_GUARDED_BY(mutex_) = 0;
  SteadyClock::time_point time_ ABSL_GUARDED_BY(mutex_);
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

// Processor seconds and resident bytes of a process.
double ProcessorSeconds(int pid) {
  const auto text = ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  if (!text.ok()) Die("the coordinator has gone");
  const std::vector<std::string> fields = absl::StrSplit(text->substr(text->rfind(')') + 2), ' ');
  std::int64_t user = 0;
  std::int64_t system = 0;
  (void)absl::SimpleAtoi(fields.at(11), &user);
  (void)absl::SimpleAtoi(fields.at(12), &system);
  return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

std::int64_t ResidentBytes(int pid) {
  const auto text = ReadFile(absl::StrCat("/proc/", pid, "/statm"));
  std::int64_t pages = 0;
  if (text.ok()) {
    const std::vector<std::string> fields = absl::StrSplit(*text, ' ');
    (void)absl::SimpleAtoi(fields.at(1), &pages);
  }
  return pages * sysconf(_SC_PAGESIZE);
}

int MeasureWatchers(const Cluster& cluster, int count, int events) {
  constexpr int kPerConnection = 50;
  auto jobs = v1::Jobs::NewStub(cluster.Connect());
  const std::string job_id = Submit(*jobs, cluster.Spec(), "");
  while (Get(*jobs, job_id).last_sequence() < 2) absl::SleepFor(absl::Milliseconds(1));
  std::vector<std::unique_ptr<v1::Jobs::Stub>> stubs;
  std::vector<std::unique_ptr<Watcher>> watchers;
  for (int i = 0; i < count; ++i) {
    if (i % kPerConnection == 0) stubs.push_back(v1::Jobs::NewStub(cluster.Connect()));
    watchers.push_back(std::make_unique<Watcher>(*stubs.back(), job_id));
  }
  std::int64_t sequence = Get(*jobs, job_id).last_sequence();
  for (auto& watcher : watchers) (void)watcher->Await(sequence);
  const double used = ProcessorSeconds(cluster.coordinator_pid());
  std::vector<double> times;
  for (int i = 0; i < events; ++i) {
    grpc::ClientContext context;
    v1::Job job;
    const auto start = SteadyClock::now();
    grpc::Status status;
    if (i % 2 == 0) {
      v1::PauseJobRequest request;
      request.set_job_id(job_id);
      status = jobs->PauseJob(&context, request, &job);
    } else {
      v1::ResumeJobRequest request;
      request.set_job_id(job_id);
      status = jobs->ResumeJob(&context, request, &job);
    }
    if (!status.ok()) Die(status.error_message());
    sequence = job.last_sequence();
    auto last = start;
    for (auto& watcher : watchers) last = std::max(last, watcher->Await(sequence));
    times.push_back(std::chrono::duration<double, std::milli>(last - start).count());
  }
  absl::PrintF(
      "{\"watchers\": %d, \"change_to_all_told_median_ms\": %.2f, \"p99_ms\": %.2f, "
      "\"coordinator_ms_per_event\": %.2f}\n",
      count, Quantile(times, 0.5), Quantile(times, 0.99),
      (ProcessorSeconds(cluster.coordinator_pid()) - used) * 1000 / events);
  for (auto& watcher : watchers) watcher->Stop();
  return 0;
}

// A worker that only keeps its session.
class IdleWorker : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage> {
 public:
  IdleWorker(const Cluster& cluster, int number) : stub_(v1::Cluster::NewStub(cluster.Connect())) {
    v1::Register* registration = message_.mutable_register_();
    registration->set_protocol_version(1);
    registration->set_worker_id(absl::StrFormat("wrk-%05d", number));
    registration->set_incarnation_id("inc-1");
    registration->set_name(absl::StrCat("node", number));
    for (int i = 0; i < 8; ++i) {
      v1::Device* device = registration->mutable_inventory()->add_devices();
      device->set_device_id(absl::StrCat("cuda:", i));
      device->set_kind("cuda");
      device->set_model("NVIDIA H100 80GB HBM3");
      device->set_memory_bytes(std::int64_t{80} << 30);
    }
    stub_->async()->Session(&context_, this);
    StartWrite(&message_);
    StartRead(&answer_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    welcome_ = true;
    StartRead(&answer_);
  }
  void OnWriteDone(bool) override { writing_ = false; }
  void OnDone(const grpc::Status& status) override {
    if (!stopping_) Die(absl::StrCat("a worker's session ended: ", status.error_message()));
    done_ = true;
  }
  void Heartbeat() {
    if (writing_.exchange(true)) return;
    message_.Clear();
    message_.mutable_heartbeat()->set_free_disk_bytes(1);
    StartWrite(&message_);
  }
  bool welcome() const { return welcome_; }
  void Stop() {
    stopping_ = true;
    context_.TryCancel();
  }
  bool done() const { return done_; }

 private:
  std::unique_ptr<v1::Cluster::Stub> stub_;
  grpc::ClientContext context_;
  v1::WorkerMessage message_;
  v1::CoordinatorMessage answer_;
  std::atomic<bool> writing_{true};
  std::atomic<bool> welcome_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> done_{false};
};

int MeasureWorkers(const Cluster& cluster, int count, double seconds) {
  constexpr int kAtATime = 200;
  std::vector<std::unique_ptr<IdleWorker>> workers;
  const auto start = SteadyClock::now();
  while (static_cast<int>(workers.size()) < count) {
    const std::size_t first = workers.size();
    for (int i = 0; i < kAtATime && static_cast<int>(workers.size()) < count; ++i) {
      workers.push_back(std::make_unique<IdleWorker>(cluster, static_cast<int>(workers.size())));
    }
    for (std::size_t i = first; i < workers.size(); ++i) {
      while (!workers[i]->welcome()) absl::SleepFor(absl::Milliseconds(1));
    }
  }
  const double joined = MillisecondsSince(start) * 1e-3;
  const double used = ProcessorSeconds(cluster.coordinator_pid());
  const auto from = SteadyClock::now();
  // Spread over the interval, as by chance.
  constexpr double kIntervalMs = 10'000;
  std::int64_t sent = 0;
  while (MillisecondsSince(from) < seconds * 1000) {
    const auto due = static_cast<std::int64_t>(MillisecondsSince(from) / kIntervalMs * count);
    for (; sent < due; ++sent) workers[static_cast<std::size_t>(sent % count)]->Heartbeat();
    absl::SleepFor(absl::Milliseconds(5));
  }
  const double elapsed = MillisecondsSince(from) * 1e-3;
  absl::PrintF(
      "{\"workers\": %d, \"seconds_to_join\": %.1f, \"cores_used\": %.3f, "
      "\"resident_mib\": %d, \"heartbeats_per_second\": %.0f}\n",
      count, joined, (ProcessorSeconds(cluster.coordinator_pid()) - used) / elapsed,
      ResidentBytes(cluster.coordinator_pid()) >> 20, static_cast<double>(sent) / elapsed);
  std::fflush(stdout);
  for (auto& worker : workers) worker->Stop();
  for (auto& worker : workers) {
    while (!worker->done()) absl::SleepFor(absl::Milliseconds(1));
  }
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Measures of the control plane with many jobs, watchers or workers.");
  std::string mode;
  std::string directory = fs::temp_directory_path().string();
  int count = 0;
  int devices = 8;
  double seconds = 30;
  app.add_option("mode", mode, "what to measure")
      ->required()
      ->check(CLI::IsMember({"train-start", "jobs", "watchers", "workers"}));
  app.add_option("--count", count, "of jobs, watchers or workers")->check(CLI::Range(1, 100000));
  app.add_option("--devices", devices, "of the worker [8]")->check(CLI::Range(1, 256));
  app.add_option("--seconds", seconds, "how long workers are watched [30]");
  app.add_option("--directory", directory,
                 "where a folder for the state is made, and removed at the end");
  CLI11_PARSE(app, argc, argv);
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &files);  // the coordinator inherits it
  }
  Cluster cluster(absl::StrCat(std::filesystem::absolute(directory).string(), "/offshoot-bench-", getpid()));
  if (mode == "train-start") return MeasureTrainStart(cluster, count == 0 ? 100 : count);
  if (mode == "jobs") return MeasureJobs(cluster, count == 0 ? 1000 : count, devices);
  if (mode == "watchers") return MeasureWatchers(cluster, count == 0 ? 1000 : count, 20);
  return MeasureWorkers(cluster, count == 0 ? 10'000 : count, seconds);
}

}  // namespace
}  // namespace offshoot

int main(int argc, char** argv) { return offshoot::Main(argc, argv); }
