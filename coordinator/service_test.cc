// What users and tools see of the services.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "coordinator/testing/coordinator_fixture.h"

namespace offshoot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ServiceTest : public CoordinatorFixture {
 protected:
  grpc::Status TrySubmit(const std::string& yaml) {
    std::string job_id;
    return CoordinatorFixture::TrySubmit(yaml, &job_id);
  }
  std::string SpecWith(const std::string& base, const std::string& data) const {
    return "base_model: " + base + "\nbase_model_id: org/m\ndatasets:\n  - path: " + data +
           "\n    type: text\n";
  }
};

TEST_F(ServiceTest, Submit_RepeatedWithItsRequestId_IsTheSameJob) {
  std::string first;
  std::string second;
  ASSERT_TRUE(CoordinatorFixture::TrySubmit(Spec(), &first, "request-1").ok());
  ASSERT_TRUE(CoordinatorFixture::TrySubmit("# a comment\n" + Spec(), &second, "request-1").ok());
  EXPECT_EQ(first, second);
  const grpc::Status other = CoordinatorFixture::TrySubmit(Spec("seed: 1\n"), &second, "request-1");
  EXPECT_EQ(other.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(other.error_message(), HasSubstr(first));
  StartCoordinator();
  ASSERT_TRUE(CoordinatorFixture::TrySubmit(Spec(), &second, "request-1").ok());
  EXPECT_EQ(first, second);
  remove(directory.File("m.gguf").c_str());
  ASSERT_TRUE(CoordinatorFixture::TrySubmit(Spec(), &second, "request-1").ok())
      << "the answer is the first job whatever became of its files";
}

TEST_F(ServiceTest, Submit_WrongSpec_ListsEveryFault) {
  const grpc::Status status = TrySubmit(Spec("learning_rat: 1\nlora_r: -4\n"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("learning_rate"));
  EXPECT_THAT(status.error_message(), HasSubstr("lora_r"));
}

TEST_F(ServiceTest, Submit_WhatIsNotThere_IsNamedAtOnce) {
  const std::string model = directory.File("m.gguf");
  const std::string data = directory.File("d.jsonl");
  const std::string digest = DigestOf("never uploaded");
  const struct {
    std::string base, data, named;
  } cases[] = {
      {directory.File("none.gguf"), data, directory.File("none.gguf")},
      {model, directory.File("none.jsonl"), directory.File("none.jsonl")},
      {model, digest, digest},
      {digest, data, digest},
      {"org/unknown", data, "org/unknown"},
      {"/etc/passwd", data, "/etc/passwd"},
      {model, directory.File("../../etc/passwd"), "etc/passwd"},
      {model, "d.jsonl", "relative"},
  };
  for (const auto& test : cases) {
    const grpc::Status status = TrySubmit(SpecWith(test.base, test.data));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << test.named;
    EXPECT_THAT(status.error_message(), HasSubstr(test.named));
    EXPECT_THAT(status.error_message(), testing::Not(HasSubstr("\n")));
  }
}

TEST_F(ServiceTest, Submit_LinkOutOfTheAllowedRoots_IsRefused) {
  ASSERT_EQ(symlink("/etc/passwd", directory.File("link.jsonl").c_str()), 0);
  const grpc::Status status =
      TrySubmit(SpecWith(directory.File("m.gguf"), directory.File("link.jsonl")));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("--allowed-root"));
}

TEST_F(ServiceTest, UnknownJob_IsNotFoundEverywhere) {
  v1::Job job;
  EXPECT_EQ(Cancel("job-x", &job).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Pause("job-x", &job).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Resume("", &job).error_code(), grpc::StatusCode::NOT_FOUND);
  grpc::ClientContext watch_context;
  v1::WatchJobRequest watch;
  watch.set_job_id("job-x");
  auto reader = jobs->WatchJob(&watch_context, watch);
  v1::JobEvent event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
  grpc::ClientContext log_context;
  v1::StreamLogsRequest logs;
  logs.set_job_id("../../etc");
  auto log_reader = jobs->StreamLogs(&log_context, logs);
  v1::LogChunk chunk;
  EXPECT_FALSE(log_reader->Read(&chunk));
  EXPECT_EQ(log_reader->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, WaitingJob_SaysWhatItWaitsFor) {
  const std::string job_id = Submit(Spec());
  AwaitState(job_id, v1::JOB_STATE_VALIDATING);
  // Base model and data are digested by now or soon; then it waits for a worker.
  for (;;) {
    const v1::Job job = Get(job_id);
    if (job.last_sequence() < 2) continue;
    EXPECT_THAT(job.message(), HasSubstr("none is connected"));
    break;
  }
}

TEST_F(ServiceTest, ChangeThatTheStateForbids_IsAFailedPrecondition) {
  const std::string job_id = Submit(Spec());
  v1::Job job;
  ASSERT_TRUE(Cancel(job_id, &job).ok());
  EXPECT_EQ(job.state(), v1::JOB_STATE_CANCELLED);
  ASSERT_TRUE(Cancel(job_id, &job).ok());
  const grpc::Status status = Pause(job_id, &job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("cancelled"));
}

TEST_F(ServiceTest, WatchJob_FromALaterSequence_EndsAfterTheTerminalEvent) {
  const std::string job_id = Submit(Spec());
  v1::Job job;
  ASSERT_TRUE(Cancel(job_id, &job).ok());
  for (const std::int64_t from :
       {std::int64_t{0}, job.last_sequence(), job.last_sequence() + 100}) {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_job_id(job_id);
    request.set_from_sequence(from);
    auto reader = jobs->WatchJob(&context, request);
    v1::JobEvent event;
    std::int64_t next = std::max<std::int64_t>(1, from);
    while (reader->Read(&event)) EXPECT_EQ(event.sequence(), next++);
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(next, std::max(from, job.last_sequence() + 1));
  }
}

TEST_F(ServiceTest, ListJobs_PagesWithoutGapsOrRepeats) {
  std::vector<std::string> submitted;
  for (int i = 0; i < 7; ++i) {
    submitted.insert(submitted.begin(), Submit(Spec("seed: " + std::to_string(i) + "\n")));
    clock.Advance(absl::Milliseconds(5));
  }
  std::vector<std::string> listed;
  v1::ListJobsRequest request;
  request.set_page_size(3);
  do {
    grpc::ClientContext context;
    v1::ListJobsResponse response;
    ASSERT_TRUE(jobs->ListJobs(&context, request, &response).ok());
    for (const v1::Job& job : response.jobs()) listed.push_back(job.job_id());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(listed, submitted);
  grpc::ClientContext context;
  request.set_page_size(100'000);
  v1::ListJobsResponse response;
  EXPECT_EQ(jobs->ListJobs(&context, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServiceTest, LogsAndMetrics_AreReadBackAndRepeatsDropped) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const std::string job_id = Submit(Spec());
  worker.PassPreflight();
  const v1::Assignment assignment = worker.AwaitAssignment();
  worker.Start(assignment);
  auto send = [&](std::int64_t offset, const std::string& log, std::vector<std::int64_t> steps) {
    v1::WorkerMessage message;
    v1::AttemptOutput* output = message.mutable_attempt_output();
    output->set_job_id(job_id);
    output->set_attempt(1);
    output->set_log_offset(offset);
    output->set_log(log);
    for (const std::int64_t step : steps) output->add_metrics()->set_step(step);
    worker.Send(message);
  };
  send(0, "hello ", {1, 2});
  send(0, "hello world", {2, 3});  // sent again after a reconnect
  send(20, "end\n", {});           // nine bytes are missing
  v1::AttemptEvent ended = ScriptedWorker::Event(assignment, 2);
  ended.mutable_ended()->set_reason_code("NAN_LOSS");
  worker.Report(ended);  // outputs before it were taken first
  grpc::ClientContext log_context;
  v1::StreamLogsRequest logs;
  logs.set_job_id(job_id);
  logs.set_follow(true);
  auto log_reader = jobs->StreamLogs(&log_context, logs);
  std::string text;
  v1::LogChunk chunk;
  while (log_reader->Read(&chunk)) text += chunk.data();
  EXPECT_TRUE(log_reader->Finish().ok());
  EXPECT_EQ(text.size(), 24u);
  EXPECT_THAT(text, testing::StartsWith("hello world"));
  EXPECT_THAT(text, testing::EndsWith("end\n"));
  grpc::ClientContext metrics_context;
  v1::StreamMetricsRequest metrics;
  metrics.set_job_id(job_id);
  metrics.set_from_step(2);
  auto metrics_reader = jobs->StreamMetrics(&metrics_context, metrics);
  std::vector<std::int64_t> steps;
  v1::StepMetrics step;
  while (metrics_reader->Read(&step)) steps.push_back(step.step());
  EXPECT_THAT(steps, ElementsAre(2, 3));
  EXPECT_EQ(Get(job_id).attempts(0).last_step(), 3) << "known from the metrics";
}

TEST_F(ServiceTest, Upload_InPieces_GoesOnFromItsOffset) {
  ScriptedWorker client(address(), "wrk-1");
  std::string bytes(300'000, 'x');
  bytes[200'000] = 'y';
  const std::string digest = DigestOf(bytes);
  {
    grpc::ClientContext context;
    v1::UploadArtifactResponse response;
    auto writer = client.stub().UploadArtifact(&context, &response);
    v1::UploadArtifactRequest request;
    request.set_digest(digest);
    request.set_size_bytes(static_cast<std::int64_t>(bytes.size()));
    request.set_data(bytes.substr(0, 100'000));
    writer->Write(request);
    writer->WritesDone();
    EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::OUT_OF_RANGE);
  }
  grpc::ClientContext context;
  v1::GetUploadOffsetRequest request;
  request.set_digest(digest);
  v1::GetUploadOffsetResponse offset;
  ASSERT_TRUE(client.stub().GetUploadOffset(&context, request, &offset).ok());
  EXPECT_EQ(offset.offset(), 100'000);
  EXPECT_FALSE(offset.complete());
  const grpc::Status status = client.Upload(bytes, "", 0, offset.offset());
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(client.Upload(bytes).ok()) << "what is there is acknowledged";
  grpc::ClientContext again;
  ASSERT_TRUE(client.stub().GetUploadOffset(&again, request, &offset).ok());
  EXPECT_TRUE(offset.complete());
  grpc::ClientContext download_context;
  v1::DownloadArtifactRequest download;
  download.set_digest(digest);
  download.set_offset(150'000);
  auto reader = client.stub().DownloadArtifact(&download_context, download);
  std::string read;
  v1::FileChunk chunk;
  while (reader->Read(&chunk)) read += chunk.data();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(read, bytes.substr(150'000));
}

TEST_F(ServiceTest, Upload_OfOtherBytes_IsRefusedAndForgotten) {
  ScriptedWorker client(address(), "wrk-1");
  const std::string digest = DigestOf("right");
  EXPECT_EQ(client.Upload("wrong", "", 0, 0, digest).error_code(), grpc::StatusCode::DATA_LOSS);
  grpc::ClientContext context;
  v1::GetUploadOffsetRequest request;
  request.set_digest(digest);
  v1::GetUploadOffsetResponse offset;
  ASSERT_TRUE(client.stub().GetUploadOffset(&context, request, &offset).ok());
  EXPECT_EQ(offset.offset(), 0);
  EXPECT_TRUE(client.Upload("right").ok());
  EXPECT_EQ(client.Upload("x", "", 0, 0, "sha256:../../etc").error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServiceTest, FileOfAJob_IsSentToAWorkerThatDoesNotSeeItsPath_UntilItChanges) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  Submit(Spec());
  const v1::Assignment assignment = worker.AwaitAssignment();
  auto download = [&](std::string* bytes) {
    grpc::ClientContext context;
    v1::DownloadArtifactRequest request;
    request.set_digest(assignment.inputs(0).files(0).digest());
    auto reader = worker.stub().DownloadArtifact(&context, request);
    v1::FileChunk chunk;
    while (reader->Read(&chunk)) *bytes += chunk.data();
    return reader->Finish();
  };
  std::string bytes;
  EXPECT_TRUE(download(&bytes).ok());
  EXPECT_EQ(bytes, "weights");
  grpc::ClientContext context;
  v1::GetArtifactLocationsRequest request;
  request.set_digest(assignment.inputs(0).files(0).digest());
  v1::GetArtifactLocationsResponse response;
  ASSERT_TRUE(worker.stub().GetArtifactLocations(&context, request, &response).ok());
  EXPECT_EQ(response.size_bytes(), 7);
  EXPECT_EQ(response.locations(0).uri(), "file://" + directory.File("m.gguf"));
  WriteFile("m.gguf", "other weights");
  EXPECT_EQ(download(&bytes).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, HubName_IsFoundInTheHuggingFaceCache) {
  const std::string model = directory.File("hub/models--org--tiny");
  const std::string commit(40, 'c');
  const std::string snapshot = model + "/snapshots/" + commit;
  std::filesystem::create_directories(snapshot);
  std::filesystem::create_directories(model + "/blobs");
  std::filesystem::create_directories(model + "/refs");
  WriteFile("hub/models--org--tiny/refs/main", commit);
  WriteFile("hub/models--org--tiny/blobs/1", "{}");
  std::filesystem::create_symlink("../../blobs/1", snapshot + "/config.json");
  std::filesystem::create_symlink("../../blobs/1", snapshot + "/model.safetensors");
  options.hub_cache = directory.File("hub");
  options.allowed_roots = {directory.File("d.jsonl")};
  StartCoordinator();
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  Submit(SpecWith("org/tiny", directory.File("d.jsonl")));
  const v1::Assignment assignment = worker.AwaitAssignment();
  EXPECT_EQ(assignment.inputs(0).files(0).path(), "config.json");
  EXPECT_EQ(assignment.inputs(0).files(0).digest(), DigestOf("{}"));
  EXPECT_EQ(assignment.inputs(0).hub_repository(), "org/tiny");
  EXPECT_EQ(assignment.inputs(0).hub_commit(), commit);
  for (const char* wrong : {"org/tiny@v9", "org/none"}) {
    const grpc::Status status = TrySubmit(SpecWith(wrong, directory.File("d.jsonl")));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("Hugging Face cache"));
  }
}

TEST_F(ServiceTest, BaseModel_RegisteredFromUploads_CanBeTrainedOn) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  v1::RegisterBaseModelRequest request;
  request.set_name("team/tiny");
  request.set_base_model_id("org/tiny");
  v1::File* file = request.add_files();
  file->set_path("config.json");
  file->set_digest(DigestOf("{}"));
  file->set_size_bytes(2);
  v1::BaseModel model;
  {
    grpc::ClientContext context;
    EXPECT_EQ(models->RegisterBaseModel(&context, request, &model).error_code(),
              grpc::StatusCode::FAILED_PRECONDITION);
  }
  ASSERT_TRUE(worker.Upload("{}").ok());
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    const grpc::Status status = models->RegisterBaseModel(&context, request, &model);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_EQ(model.files_size(), 1);
  Submit(SpecWith("team/tiny", directory.File("d.jsonl")));
  const v1::Assignment assignment = worker.AwaitAssignment();
  EXPECT_EQ(assignment.inputs(0).files(0).path(), "config.json");
  EXPECT_EQ(assignment.inputs(0).shared_path(), "");
  request.clear_files();
  request.set_path(directory.File("m.gguf"));
  grpc::ClientContext context;
  EXPECT_EQ(models->RegisterBaseModel(&context, request, &model).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(ServiceTest, OversizedMessage_IsRefused) {
  const grpc::Status status = TrySubmit(Spec("# " + std::string(5 << 20, 'x') + "\n"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServiceTest, ManySubmitsAtOnce_AreAllThere) {
  constexpr int kClients = 8;
  constexpr int kEach = 25;
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      for (int k = 0; k < kEach; ++k) {
        std::string job_id;
        EXPECT_TRUE(CoordinatorFixture::TrySubmit(Spec(), &job_id, absl::StrCat(i, "-", k)).ok());
      }
    });
  }
  for (std::thread& client : clients) client.join();
  StartCoordinator();
  grpc::ClientContext context;
  v1::ListJobsRequest request;
  request.set_page_size(1000);
  v1::ListJobsResponse response;
  ASSERT_TRUE(jobs->ListJobs(&context, request, &response).ok());
  EXPECT_EQ(response.jobs_size(), kClients * kEach);
}

TEST_F(ServiceTest, ManyWatchers_AllSeeTheEnd) {
  const std::string job_id = Submit(Spec());
  constexpr int kWatchers = 100;
  std::atomic<int> ends{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kWatchers; ++i) {
    threads.emplace_back([&] {
      grpc::ClientContext context;
      v1::WatchJobRequest request;
      request.set_job_id(job_id);
      auto reader = jobs->WatchJob(&context, request);
      v1::JobEvent event;
      v1::JobState last = v1::JOB_STATE_UNSPECIFIED;
      while (reader->Read(&event)) last = event.state();
      if (last == v1::JOB_STATE_CANCELLED && reader->Finish().ok()) ends += 1;
    });
  }
  v1::Job job;
  ASSERT_TRUE(Cancel(job_id, &job).ok());
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ends, kWatchers);
}

TEST_F(ServiceTest, SecondCoordinator_OnTheStateDirectory_IsRefusedInOneSentence) {
  const auto second = CoordinatorServer::Start(options, clock);
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status()));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options.state_dir));
}

TEST_F(ServiceTest, PortInUseOrOpenToAll_IsRefusedInOneSentence) {
  ServerOptions other = options;
  other.state_dir = directory.File("other");
  other.listen = address();
  EXPECT_THAT(std::string(CoordinatorServer::Start(other, clock).status().message()),
              HasSubstr(address()));
  other.listen = "0.0.0.0:0";
  EXPECT_THAT(std::string(CoordinatorServer::Start(other, clock).status().message()),
              HasSubstr("--insecure"));
  other.listen = "nonsense";
  EXPECT_TRUE(absl::IsInvalidArgument(CoordinatorServer::Start(other, clock).status()));
}

}  // namespace
}  // namespace offshoot
