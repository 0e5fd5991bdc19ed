// Two measures of the control plane, each against a coordinator process of its own on loopback:
//   submits    durable submits per second, each its own RPC, from several clients at a time
//   placement  from the call of SubmitJob until the worker has the assignment to train, with the
//              check (preflight) cached and the cluster idle
// Prints one line of JSON. The state lies under --directory, so that its disk is the one measured.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
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
#include "bench/bench_cluster.h"
#include "offshoot/v1/cluster.grpc.pb.h"
#include "offshoot/v1/jobs.grpc.pb.h"

namespace offshoot {
namespace {

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
  std::string preload;
  app.add_option("mode", mode, "submits or placement")
      ->check(CLI::IsMember({"submits", "placement"}));
  app.add_option("--clients", clients, "clients at a time [32]")->check(CLI::Range(1, 1024));
  app.add_option("--seconds", seconds, "how long [5]")->check(CLI::Range(0.1, 600.0));
  app.add_option("--jobs", jobs, "placements to time [200]")->check(CLI::Range(1, 100000));
  app.add_option("--preload", preload, "a library loaded into the coordinator (slow_sync)");
  app.add_option("--directory", directory,
                 "where a folder for the state is made, and removed at the end");
  CLI11_PARSE(app, argc, argv);
  const Cluster cluster(
      absl::StrCat(std::filesystem::absolute(directory).string(), "/offshoot-bench-", getpid()),
      preload.empty() ? std::vector<std::pair<std::string, std::string>>{}
                      : std::vector<std::pair<std::string, std::string>>{{"LD_PRELOAD", preload}});
  return mode == "submits" ? MeasureSubmits(cluster, clients, seconds)
                           : MeasurePlacement(cluster, jobs);
}

}  // namespace
}  // namespace offshoot

int main(int argc, char** argv) { return offshoot::Main(argc, argv); }
