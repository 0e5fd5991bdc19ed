// Two measures of the control plane, each against a coordinator process of its own on loopback:
//   submits    durable submits per second, each its own RPC, from several clients at a time
//   placement  from the call of SubmitJob until the worker has the assignment to train, with the
//              check (preflight) cached and the cluster idle
// Prints one line of JSON. The state lies under --directory, so that its disk is the one measured.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/process.h"
#include "offshoot/v1/cluster.grpc.pb.h"
#include "offshoot/v1/jobs.grpc.pb.h"

namespace offshoot {
namespace {

using SteadyClock = std::chrono::steady_clock;

double MillisecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count();
}

double Quantile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto index = static_cast<std::size_t>(part * static_cast<double>(values.size() - 1));
  return values[index];
}

[[noreturn]] void Die(const std::string& why) {
  std::cerr << "submit_bench: " << why << "\n";
  std::exit(1);
}

// A coordinator process with a small base model and data set to name.
class Cluster {
 public:
  explicit Cluster(const std::string& directory) : directory_(directory) {
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    std::ofstream(directory_ + "/m.gguf") << "weights";
    std::ofstream(directory_ + "/d.jsonl") << "{\"text\": \"a\"}\n";
    SpawnOptions spawn;
    const std::string address_file = directory_ + "/address";
    spawn.arguments = {JoinPath(ProgramDirectory(), "offshoot-coordinator"),
                       "--listen",
                       "127.0.0.1:0",
                       "--state-dir",
                       directory_ + "/state",
                       "--allowed-root",
                       directory_,
                       "--address-file",
                       address_file,
                       "--log-level",
                       "error"};
    spawn.descriptors = {{2, 2}};
    auto child = spawner_.Spawn(spawn);
    if (!child.ok()) Die(std::string(child.status().message()));
    child_ = *std::move(child);
    for (int i = 0; i < 1000 && !PathExists(address_file); ++i) {
      absl::SleepFor(absl::Milliseconds(10));
    }
    const auto text = ReadFile(address_file);
    if (!text.ok()) Die("the coordinator did not start");
    address_ = std::string(absl::StripSuffix(*text, "\n"));
  }
  ~Cluster() {
    child_->Terminate(absl::Seconds(5));
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  std::shared_ptr<grpc::Channel> Connect() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments);
  }
  std::string Spec() const {
    return absl::StrCat("name: bench\nbase_model: ", directory_, "/m.gguf\nbase_model_id: org/m\n",
                        "datasets:\n  - path: ", directory_, "/d.jsonl\n    type: text\n");
  }

 private:
  const std::string directory_;
  ProcessSpawner spawner_;
  std::unique_ptr<ChildProcess> child_;
  std::string address_;
};

std::string Submit(v1::Jobs::Stub& jobs, const std::string& spec, const std::string& request_id) {
  grpc::ClientContext context;
  v1::SubmitJobRequest request;
  request.set_spec_yaml(spec);
  request.set_request_id(request_id);
  v1::SubmitJobResponse response;
  const grpc::Status status = jobs.SubmitJob(&context, request, &response);
  if (!status.ok()) Die(status.error_message());
  return response.job_id();
}

int MeasureSubmits(const Cluster& cluster, int clients, double seconds) {
  {
    auto jobs = v1::Jobs::NewStub(cluster.Connect());
    Submit(*jobs, cluster.Spec(), "");  // the files' digests are known from now on
  }
  std::atomic<bool> stop{false};
  std::vector<std::vector<double>> times(static_cast<std::size_t>(clients));
  std::vector<std::thread> threads;
  const auto start = SteadyClock::now();
  for (int i = 0; i < clients; ++i) {
    threads.emplace_back([&, i] {
      auto jobs = v1::Jobs::NewStub(cluster.Connect());
      for (int k = 0; !stop; ++k) {
        const auto begin = SteadyClock::now();
        Submit(*jobs, cluster.Spec(), absl::StrCat("client-", i, "-", k));
        times[static_cast<std::size_t>(i)].push_back(MillisecondsSince(begin));
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  const double elapsed = MillisecondsSince(start) * 1e-3;
  std::vector<double> all;
  for (const auto& list : times) all.insert(all.end(), list.begin(), list.end());
  const double rate = static_cast<double>(all.size()) / elapsed;
  absl::PrintF(
      "{\"submits_per_second\": %.0f, \"submits\": %d, \"clients\": %d, "
      "\"seconds\": %.2f, \"median_ms\": %.2f, \"p99_ms\": %.2f}\n",
      rate, all.size(), clients, elapsed, Quantile(all, 0.5), Quantile(all, 0.99));
  return 0;
}

int MeasurePlacement(const Cluster& cluster, int jobs_to_place) {
  auto channel = cluster.Connect();
  auto jobs = v1::Jobs::NewStub(channel);
  auto stub = v1::Cluster::NewStub(cluster.Connect());
  grpc::ClientContext context;
  auto session = stub->Session(&context);
  v1::WorkerMessage message;
  v1::Register* registration = message.mutable_register_();
  registration->set_protocol_version(1);
  registration->set_worker_id("wrk-bench");
  registration->set_incarnation_id("inc-bench");
  registration->set_name("bench");
  v1::Device* device = registration->mutable_inventory()->add_devices();
  device->set_device_id("cpu:0");
  device->set_kind("cpu");
  device->set_threads(1);
  session->Write(message);
  std::vector<double> times;
  v1::CoordinatorMessage answer;
  auto start = SteadyClock::now();
  std::thread submitter;
  auto submit = [&] {
    if (submitter.joinable()) submitter.join();
    submitter = std::thread([&] {
      start = SteadyClock::now();
      Submit(*jobs, cluster.Spec(), "");
    });
  };
  while (static_cast<int>(times.size()) < jobs_to_place && session->Read(&answer)) {
    if (answer.has_welcome()) submit();
    if (!answer.has_assignment()) continue;
    const v1::Assignment& assignment = answer.assignment();
    const bool train = assignment.kind() == v1::ASSIGNMENT_KIND_TRAIN;
    if (train) times.push_back(MillisecondsSince(start));
    v1::WorkerMessage report;
    v1::AttemptEvent* event = report.mutable_attempt_event();
    event->set_job_id(assignment.job_id());
    event->set_attempt(assignment.attempt());
    event->set_sequence(1);
    if (train) {
      event->mutable_ended()->set_reason_code("BAD_SPEC");  // ends the job at once
    } else {
      event->mutable_preflight()->set_ok(true);
    }
    session->Write(report);
    // The next one comes when this one's end is stored: the cluster is idle again.
    while (session->Read(&answer) && !answer.has_event_ack()) {
    }
    if (train) submit();
  }
  if (submitter.joinable()) submitter.join();
  context.TryCancel();
  while (session->Read(&answer)) {
  }
  (void)session->Finish();
  if (times.size() > 1) times.erase(times.begin());  // the first one had no cached check
  absl::PrintF("{\"submit_to_assignment_median_ms\": %.2f, \"p99_ms\": %.2f, \"jobs\": %d}\n",
               Quantile(times, 0.5), Quantile(times, 0.99), times.size());
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Durable submits per second, and the time from submit to assignment.");
  std::string mode = "submits";
  std::string directory = std::filesystem::temp_directory_path().string();
  int clients = 32;
  double seconds = 5;
  int jobs = 200;
  app.add_option("mode", mode, "submits or placement")
      ->check(CLI::IsMember({"submits", "placement"}));
  app.add_option("--clients", clients, "clients at a time [32]")->check(CLI::Range(1, 1024));
  app.add_option("--seconds", seconds, "how long [5]")->check(CLI::Range(0.1, 600.0));
  app.add_option("--jobs", jobs, "placements to time [200]")->check(CLI::Range(1, 100000));
  app.add_option("--directory", directory,
                 "where a folder for the state is made, and removed at the end");
  CLI11_PARSE(app, argc, argv);
  const Cluster cluster(absl::StrCat(directory, "/offshoot-bench-", getpid()));
  return mode == "submits" ? MeasureSubmits(cluster, clients, seconds)
                           : MeasurePlacement(cluster, jobs);
}

}  // namespace
}  // namespace offshoot

int main(int argc, char** argv) { return offshoot::Main(argc, argv); }
