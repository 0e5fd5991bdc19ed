// What the benchmarks of the control plane share: a coordinator process of their own on loopback,
// a worker process with a scripted trainer, quantiles. For one thread, but for Submit.
#pragma once

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/process.h"
#include "offshoot/v1/jobs.grpc.pb.h"

namespace offshoot {

using SteadyClock = std::chrono::steady_clock;

inline double MillisecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count();
}

inline double Quantile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto index = static_cast<std::size_t>(part * static_cast<double>(values.size() - 1));
  return values[index];
}

[[noreturn]] inline void Die(const std::string& why) {
  std::cerr << "benchmark: " << why << "\n";
  std::exit(1);
}

// A coordinator process with a small base model and data set to name.
class Cluster {
 public:
  // environment: added to the coordinator's.
  explicit Cluster(const std::string& directory,
                   std::vector<std::pair<std::string, std::string>> environment = {})
      : directory_(directory) {
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
    spawn.environment = std::move(environment);
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
    if (worker_ != nullptr) worker_->Terminate(absl::Seconds(5));
    child_->Terminate(absl::Seconds(5));
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  // A real worker that runs `trainer` on so many devices.
  void StartWorker(const std::string& trainer, int devices) {
    std::string offered;
    for (int i = 0; i < devices; ++i) {
      absl::StrAppend(&offered, i == 0 ? "" : ",", "cpu:", i, "@1");
    }
    SpawnOptions spawn;
    spawn.arguments = {JoinPath(ProgramDirectory(), "offshoot-worker"),
                       "--coordinator",
                       address_,
                       "--state-dir",
                       directory_ + "/worker",
                       "--devices",
                       offered,
                       "--trainer",
                       trainer,
                       "--log-level",
                       "error"};
    spawn.descriptors = {{2, 2}};
    auto child = spawner_.Spawn(spawn);
    if (!child.ok()) Die(std::string(child.status().message()));
    worker_ = *std::move(child);
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

  const std::string& directory() const { return directory_; }
  const std::string& address() const { return address_; }
  int coordinator_pid() const { return static_cast<int>(child_->identity().pid); }

 private:
  const std::string directory_;
  ProcessSpawner spawner_;
  std::unique_ptr<ChildProcess> child_;
  std::unique_ptr<ChildProcess> worker_;
  std::string address_;
};

inline std::string Submit(v1::Jobs::Stub& jobs, const std::string& spec,
                          const std::string& request_id) {
  grpc::ClientContext context;
  v1::SubmitJobRequest request;
  request.set_spec_yaml(spec);
  request.set_request_id(request_id);
  v1::SubmitJobResponse response;
  const grpc::Status status = jobs.SubmitJob(&context, request, &response);
  if (!status.ok()) Die(status.error_message());
  return response.job_id();
}

}  // namespace offshoot
