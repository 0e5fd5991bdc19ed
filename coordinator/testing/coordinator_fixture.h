// A real coordinator on a port of its own with a temporary state directory, and a client of it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>

#include "common/clock.h"
#include "common/temporary_directory.h"
#include "coordinator/server.h"
#include "coordinator/testing/scripted_worker.h"
#include "offshoot/v1/jobs.grpc.pb.h"
#include "offshoot/v1/models.grpc.pb.h"

namespace offshoot {

class CoordinatorFixture : public testing::Test {
 protected:
  CoordinatorFixture() {
    WriteFile("m.gguf", "weights");
    WriteFile("d.jsonl", "{\"text\": \"a\"}\n");
    options.state_dir = directory.File("state");
    options.listen = "127.0.0.1:0";
    options.allowed_roots = {directory.path()};
    StartCoordinator();
  }

  void WriteFile(const std::string& name, const std::string& text) const {
    std::ofstream(directory.File(name)) << text;
  }
  void StartCoordinator() {
    coordinator.reset();
    auto started = CoordinatorServer::Start(options, clock);
    ASSERT_TRUE(started.ok()) << started.status();
    coordinator = *std::move(started);
    channel = grpc::CreateChannel(address(), grpc::InsecureChannelCredentials());
    jobs = v1::Jobs::NewStub(channel);
    models = v1::Models::NewStub(channel);
  }
  const std::string& address() const { return coordinator->address(); }
  void Advance(absl::Duration duration) {
    clock.Advance(duration);
    coordinator->Wake();
  }

  std::string Spec(const std::string& more = "") const {
    return "name: test\nbase_model: " + directory.File("m.gguf") + "\nbase_model_id: org/m\n" +
           "datasets:\n  - path: " + directory.File("d.jsonl") + "\n    type: text\n" + more;
  }
  grpc::Status TrySubmit(const std::string& yaml, std::string* job_id,
                         const std::string& request_id = "") {
    grpc::ClientContext context;
    v1::SubmitJobRequest request;
    request.set_spec_yaml(yaml);
    request.set_request_id(request_id);
    v1::SubmitJobResponse response;
    const grpc::Status status = jobs->SubmitJob(&context, request, &response);
    *job_id = response.job_id();
    return status;
  }
  std::string Submit(const std::string& yaml) {
    std::string job_id;
    const grpc::Status status = TrySubmit(yaml, &job_id);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job_id;
  }
  v1::Job Get(const std::string& job_id) {
    grpc::ClientContext context;
    v1::GetJobRequest request;
    request.set_job_id(job_id);
    v1::Job job;
    const grpc::Status status = jobs->GetJob(&context, request, &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  // Reads the job's events until one leaves it in this state.
  v1::JobEvent AwaitState(const std::string& job_id, v1::JobState state) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    v1::WatchJobRequest request;
    request.set_job_id(job_id);
    auto reader = jobs->WatchJob(&context, request);
    v1::JobEvent event;
    std::int64_t last = 0;
    while (reader->Read(&event)) {
      EXPECT_EQ(event.sequence(), ++last) << "sequences are dense";
      if (event.sequence() == Get(job_id).last_sequence() && event.state() == state) {
        context.TryCancel();
        return event;
      }
    }
    ADD_FAILURE() << "job " << job_id << " never was " << v1::JobState_Name(state) << " but "
                  << Get(job_id).ShortDebugString();
    return event;
  }
  grpc::Status Cancel(const std::string& job_id, v1::Job* job) {
    grpc::ClientContext context;
    v1::CancelJobRequest request;
    request.set_job_id(job_id);
    return jobs->CancelJob(&context, request, job);
  }
  grpc::Status Pause(const std::string& job_id, v1::Job* job) {
    grpc::ClientContext context;
    v1::PauseJobRequest request;
    request.set_job_id(job_id);
    return jobs->PauseJob(&context, request, job);
  }
  grpc::Status Resume(const std::string& job_id, v1::Job* job) {
    grpc::ClientContext context;
    v1::ResumeJobRequest request;
    request.set_job_id(job_id);
    return jobs->ResumeJob(&context, request, job);
  }

  TemporaryDirectory directory;
  FakeClock clock{absl::FromUnixSeconds(1'700'000'000)};
  ServerOptions options;
  std::unique_ptr<CoordinatorServer> coordinator;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Jobs::Stub> jobs;
  std::unique_ptr<v1::Models::Stub> models;
};

}  // namespace offshoot
