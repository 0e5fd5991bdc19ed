// One scheduling cycle of the real controller over the real store: the snapshot, the plan, and
// applying it with its durable transaction. 10,000 workers of 8 GPUs, half of them busy; 100,000
// queued jobs of 50 shapes from 20 teams, a tenth of them gangs. Prints one line of JSON.
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <random>

#include "absl/strings/str_format.h"
#include "bench/bench_cluster.h"
#include "common/clock.h"
#include "coordinator/controller.h"
#include "coordinator/store_sqlite.h"

namespace offshoot {
namespace {

constexpr int kShapes = 50;
constexpr int kTeams = 20;
constexpr int kDevices = 8;
constexpr char kSpec[] =
    "base_model: /m.gguf\ndatasets:\n  - path: /d.jsonl\n    type: text\nname: bench\n";

class SilentPeer : public SessionPeer {
 public:
  void Send(SessionMessage message) override {
    assignments += std::holds_alternative<AssignMessage>(message) ? 1 : 0;
  }
  void Close(absl::Status status) override { Die(std::string(status.message())); }
  std::int64_t assignments = 0;
};

// SQLite, but what is loaded still has its parsed specs, as in a coordinator that took the jobs in.
class WarmStore : public Store {
 public:
  WarmStore(Store& store, std::vector<JobRecord> jobs) : store_(store), jobs_(std::move(jobs)) {}
  absl::StatusOr<LoadedState> Load() override {
    auto state = store_.Load();
    if (state.ok()) state->jobs = std::move(jobs_);
    return state;
  }
  absl::StatusOr<std::int64_t> Commit(const StoreWrite& write) override {
    return store_.Commit(write);
  }
  absl::StatusOr<JobRecord> GetJob(const JobId& id) override { return store_.GetJob(id); }
  absl::StatusOr<std::optional<JobRecord>> FindRequest(const std::string& id) override {
    return store_.FindRequest(id);
  }
  absl::StatusOr<std::vector<JobRecord>> ListJobs(const JobFilter& filter) override {
    return store_.ListJobs(filter);
  }
  absl::StatusOr<std::vector<JobEventRecord>> ListEvents(const JobId& id, std::int64_t from,
                                                         int limit) override {
    return store_.ListEvents(id, from, limit);
  }
  absl::StatusOr<std::optional<std::string>> FindPreflight(const std::string& key) override {
    return store_.FindPreflight(key);
  }
  absl::StatusOr<std::optional<std::string>> FindFileDigest(const FileIdentity& file) override {
    return store_.FindFileDigest(file);
  }
  absl::StatusOr<std::vector<FileIdentity>> FindFilesByDigest(const std::string& digest) override {
    return store_.FindFilesByDigest(digest);
  }
  absl::StatusOr<BaseModelRecord> GetBaseModel(const std::string& name) override {
    return store_.GetBaseModel(name);
  }
  absl::StatusOr<std::vector<BaseModelRecord>> ListBaseModels(const std::string& after,
                                                              int limit) override {
    return store_.ListBaseModels(after, limit);
  }
  absl::StatusOr<DerivativeRecord> GetDerivative(const DerivativeId& id) override {
    return store_.GetDerivative(id);
  }
  absl::StatusOr<std::vector<DerivativeRecord>> ListDerivatives(
      const DerivativeFilter& filter) override {
    return store_.ListDerivatives(filter);
  }
  absl::StatusOr<bool> IsReferenced(const std::string& digest) override {
    return store_.IsReferenced(digest);
  }

 private:
  Store& store_;
  std::vector<JobRecord> jobs_;
};

WorkerId WorkerName(int number) { return WorkerId(absl::StrFormat("wrk-%05d", number)); }

JobRequirements ShapeNumber(int shape) {
  JobRequirements wanted;
  wanted.device_kind = "cuda";
  // Five of the fifty are gangs.
  wanted.ranks = shape % 10 == 9 ? 4 << (shape / 10) : 1 + shape % 2;
  wanted.min_memory_bytes = std::int64_t{1 + shape} << 30;
  if (shape % 7 == 0) wanted.gpu_models = {"H100"};
  if (shape % 5 == 0) wanted.labels["zone"] = absl::StrCat("z", shape % 3);
  return wanted;
}

JobRecord MakeRecord(const std::string& id, int number, absl::Time created,
                     std::shared_ptr<const JobSpec> spec, std::shared_ptr<const JobInputs> inputs) {
  auto definition = std::make_shared<JobDefinition>();
  definition->job_id = JobId(id);
  definition->name = "bench";
  definition->team = absl::StrCat("team", number % kTeams);
  definition->spec_yaml = kSpec;
  definition->spec_digest = "sha256:bench";
  definition->created = created;
  definition->requirements = ShapeNumber(number / kTeams % kShapes);
  definition->spec = std::move(spec);
  JobRecord job;
  job.definition = std::move(definition);
  job.state = JobState::kQueued;
  job.preflighted = true;
  job.inputs = std::move(inputs);
  return job;
}

std::vector<JobRecord> MakeJobs(int workers, int queued, absl::Time now) {
  auto spec = ParseJobSpec(kSpec);
  if (!spec.ok()) Die(std::string(spec.status().message()));
  const auto shared = std::make_shared<const JobSpec>(*std::move(spec));
  auto inputs = std::make_shared<JobInputs>();
  inputs->preflight_key = "key";
  inputs->inputs = {{"/base_model/path", {{"", "sha256:m", 7}}, "/m.gguf", "sha256:m"},
                    {"/datasets/0/path", {{"", "sha256:d", 7}}, "/d.jsonl", "sha256:d"}};
  std::vector<JobRecord> jobs;
  for (int i = 0; i < queued; ++i) {
    jobs.push_back(MakeRecord(absl::StrFormat("job-q%07d", i), i, now - absl::Seconds(queued - i),
                              shared, inputs));
  }
  for (int w = 0; w < workers; ++w) {
    for (int d = 0; d < kDevices / 2; ++d) {
      JobRecord job = MakeRecord(absl::StrFormat("job-r%06d-%d", w, d), w, now - absl::Hours(30),
                                 shared, inputs);
      job.state = JobState::kRunning;
      AttemptRecord& attempt = job.attempts.emplace_back();
      attempt.number = 1;
      attempt.members = {{WorkerName(w), "node", {absl::StrCat("cuda:", d)}}};
      attempt.started = now - absl::Seconds(w % 3000);
      jobs.push_back(std::move(job));
    }
  }
  return jobs;
}

SessionId Register(Controller& controller, const std::shared_ptr<SilentPeer>& peer, int number) {
  const SessionId session = controller.OpenSession(peer);
  RegisterInfo info;
  info.protocol_version = kProtocolVersion;
  info.worker.worker_id = WorkerName(number);
  info.worker.name = absl::StrCat("node", number);
  info.worker.address = absl::StrCat("10.0.", number / 256, ".", number % 256);
  info.worker.labels = {{"zone", absl::StrCat("z", number % 3)},
                        {"rack", absl::StrCat("r", number / 32)}};
  for (int d = 0; d < kDevices; ++d) {
    DeviceRecord device;
    device.device_id = absl::StrCat("cuda:", d);
    device.kind = "cuda";
    device.memory_bytes = std::int64_t{number % 4 == 0 ? 40 : 80} << 30;
    device.model = number % 4 == 0 ? "NVIDIA A100-SXM4-40GB" : "NVIDIA H100 80GB HBM3";
    info.worker.devices.push_back(std::move(device));
  }
  for (int d = 0; d < kDevices / 2; ++d) {
    info.held.push_back({JobId(absl::StrFormat("job-r%06d-%d", number, d)), 1});
  }
  controller.Register(session, std::move(info), [] {});
  return session;
}

int Main(int argc, char** argv) {
  CLI::App app("One scheduling cycle of a large cluster.");
  std::string directory = std::filesystem::temp_directory_path().string();
  int workers = 10'000;
  int queued = 100'000;
  int cycles = 9;
  app.add_option("--workers", workers, "of 8 GPUs each [10000]")->check(CLI::Range(1, 60000));
  app.add_option("--jobs", queued, "queued [100000]")->check(CLI::Range(1, 10'000'000));
  app.add_option("--cycles", cycles, "to time [9]")->check(CLI::Range(1, 1000));
  app.add_option("--directory", directory,
                 "where a folder for the state is made, and removed at the end");
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::off);
  const std::string folder = absl::StrCat(directory, "/offshoot-bench-", getpid());
  std::filesystem::create_directories(folder);
  auto sqlite = SqliteStore::Open(folder + "/store.sqlite3");
  if (!sqlite.ok()) Die(std::string(sqlite.status().message()));
  FakeClock clock(absl::Now());
  std::vector<JobRecord> jobs = MakeJobs(workers, queued, clock.Now());
  StoreWrite write;
  write.new_jobs = jobs;
  if (auto version = (*sqlite)->Commit(write); !version.ok()) {
    Die(std::string(version.status().message()));
  }
  write = StoreWrite();
  WarmStore store(**sqlite, std::move(jobs));
  auto artifacts = ArtifactDirectory::Open(folder + "/artifacts");
  if (!artifacts.ok()) Die(std::string(artifacts.status().message()));
  AttemptOutputs outputs(folder + "/outputs", OutputLimits());
  JobSignals signals;
  ControllerOptions options;
  options.lease = absl::Hours(10);
  Controller controller(options, store, clock, **artifacts, outputs, signals,
                        [](std::shared_ptr<const JobSpec>, auto) {});
  if (absl::Status status = controller.Load(); !status.ok()) Die(std::string(status.message()));
  auto peer = std::make_shared<SilentPeer>();
  std::vector<SessionId> sessions;
  for (int w = 0; w < workers; ++w) sessions.push_back(Register(controller, peer, w));
  while (controller.RunOnce()) {
  }
  std::vector<double> cycle_ms;
  std::vector<double> round_ms;
  const ControllerCounters& counters = controller.counters();
  const std::int64_t placed = counters.placements;
  for (int i = 0; i < cycles; ++i) {
    const std::int64_t before = counters.schedule_microseconds + counters.commit_microseconds;
    const std::int64_t schedules = counters.schedules;
    clock.Advance(absl::Seconds(10));
    // What asks for the cycle: a job has ended.
    const JobId ended(absl::StrFormat("job-r%06d-0", i % workers));
    controller.Report(sessions[static_cast<std::size_t>(i % workers)],
                      AttemptReport{ended, 1, 1, AttemptEnded{"BAD_SPEC", "", false, 1, 1, ""}},
                      [] {});
    const auto start = SteadyClock::now();
    controller.RunOnce();
    if (counters.schedules != schedules + 1) Die("a round had no cycle");
    round_ms.push_back(MillisecondsSince(start));
    cycle_ms.push_back(static_cast<double>(counters.schedule_microseconds +
                                           counters.commit_microseconds - before) *
                       1e-3);
  }
  absl::PrintF(
      "{\"workers\": %d, \"jobs\": %d, \"cycle_median_ms\": %.1f, \"cycle_max_ms\": %.1f, "
      "\"round_median_ms\": %.1f, \"starts_per_cycle\": %.0f, \"starts_per_second\": %.0f}\n",
      workers, queued, Quantile(cycle_ms, 0.5), Quantile(cycle_ms, 1), Quantile(round_ms, 0.5),
      static_cast<double>(counters.placements - placed) / cycles,
      static_cast<double>(counters.placements - placed) / cycles / Quantile(round_ms, 0.5) * 1000);
  std::filesystem::remove_all(folder);
  return 0;
}

}  // namespace
}  // namespace offshoot

int main(int argc, char** argv) { return offshoot::Main(argc, argv); }
