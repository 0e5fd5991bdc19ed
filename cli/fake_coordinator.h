// A coordinator for the command line's tests: answers from memory over a real connection, and can
// be away, slow to come, cut a stream short or refuse.
#pragma once

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/digest.h"
#include "common/job_spec.h"
#include "offshoot/v1/cluster.grpc.pb.h"
#include "offshoot/v1/jobs.grpc.pb.h"
#include "offshoot/v1/models.grpc.pb.h"

namespace offshoot::cli {

class FakeCoordinator : public v1::Jobs::Service,
                        public v1::Models::Service,
                        public v1::Cluster::Service {
 public:
  FakeCoordinator() { Start("127.0.0.1:0"); }
  ~FakeCoordinator() override { Stop(); }

  void Start(const std::string& address) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(static_cast<v1::Jobs::Service*>(this));
    builder.RegisterService(static_cast<v1::Models::Service*>(this));
    builder.RegisterService(static_cast<v1::Cluster::Service*>(this));
    server_ = builder.BuildAndStart();
    if (server_ != nullptr) address_ = absl::StrCat("127.0.0.1:", port);
  }
  void Stop() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }
  const std::string& address() const { return address_; }

  // Set by tests before the calls, read after them.
  absl::Mutex mutex;
  std::map<std::string, v1::Job> jobs;
  std::map<std::string, std::vector<v1::JobEvent>> events;
  std::vector<v1::SubmitJobRequest> submits;
  std::vector<v1::LogChunk> logs;
  std::vector<v1::StepMetrics> metrics;
  std::vector<v1::Worker> workers;
  std::vector<v1::BaseModel> base_models;
  std::vector<v1::Derivative> derivatives;
  std::map<std::string, std::string> files;      // path -> bytes, of every derivative
  std::map<std::string, std::string> artifacts;  // digest -> bytes
  std::map<std::string, std::string> partial;    // digest -> bytes of an unfinished upload
  std::string refused_path;                      // a base model or adapter that cannot be read here
  std::string cancel_reason;
  int unavailable_calls = 0;  // so many calls are answered UNAVAILABLE first
  int cut_streams = 0;        // so many streams end UNAVAILABLE after their first message
  int list_calls = 0;
  int upload_questions = 0;
  int download_calls = 0;
  bool wrong_bytes = false;

 private:
  grpc::Status Away() {
    absl::MutexLock lock(&mutex);
    if (unavailable_calls <= 0) return grpc::Status::OK;
    --unavailable_calls;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting");
  }
  bool CutNow() {
    absl::MutexLock lock(&mutex);
    return cut_streams > 0 && cut_streams-- > 0;
  }
  grpc::Status FindJob(const std::string& job_id, v1::Job* job) {
    absl::MutexLock lock(&mutex);
    const auto found = jobs.find(job_id);
    if (found == jobs.end()) {
      return grpc::Status(grpc::StatusCode::NOT_FOUND, "there is no job " + job_id);
    }
    *job = found->second;
    return grpc::Status::OK;
  }
  template <typename Message>
  grpc::Status Send(grpc::ServerWriter<Message>* writer, const std::vector<Message>& messages) {
    const bool cut = CutNow();
    for (const Message& message : messages) {
      writer->Write(message);
      if (cut) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut");
    }
    return grpc::Status::OK;
  }

  grpc::Status SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest* request,
                         v1::SubmitJobResponse* response) override {
    if (const grpc::Status away = Away(); !away.ok()) return away;
    absl::MutexLock lock(&mutex);
    submits.push_back(*request);
    if (!refused_path.empty() && request->spec_yaml().find(refused_path) != std::string::npos) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          "base_model: " + refused_path + " is not under allowed_roots");
    }
    const absl::StatusOr<JobSpec> spec = ParseJobSpec(request->spec_yaml());
    if (!spec.ok()) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "wrong spec");
    for (const DatasetSpec& dataset : spec->datasets) {
      if (artifacts.count(dataset.path) != 0) continue;
      return grpc::Status(
          grpc::StatusCode::INVALID_ARGUMENT,
          "datasets[0].path: " + dataset.path + " was not uploaded to this coordinator");
    }
    response->set_job_id("job-1");
    return grpc::Status::OK;
  }
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                      v1::Job* response) override {
    if (const grpc::Status away = Away(); !away.ok()) return away;
    return FindJob(request->job_id(), response);
  }
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override {
    absl::MutexLock lock(&mutex);
    ++list_calls;
    auto job = request->page_token().empty() ? jobs.begin() : jobs.find(request->page_token());
    for (; job != jobs.end() && response->jobs_size() < request->page_size(); ++job) {
      const auto& states = request->states();
      if (states.empty() || std::count(states.begin(), states.end(), job->second.state()) > 0) {
        *response->add_jobs() = job->second;
      }
    }
    if (job != jobs.end()) response->set_next_page_token(job->first);
    return grpc::Status::OK;
  }
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::JobEvent>* writer) override {
    std::vector<v1::JobEvent> wanted;
    {
      absl::MutexLock lock(&mutex);
      const auto found = events.find(request->job_id());
      if (found == events.end()) {
        return grpc::Status(grpc::StatusCode::NOT_FOUND, "there is no job " + request->job_id());
      }
      for (const v1::JobEvent& event : found->second) {
        if (event.sequence() >= request->from_sequence()) wanted.push_back(event);
      }
    }
    return Send(writer, wanted);
  }
  grpc::Status StreamLogs(grpc::ServerContext*, const v1::StreamLogsRequest*,
                          grpc::ServerWriter<v1::LogChunk>* writer) override {
    return Send(writer, logs);
  }
  grpc::Status StreamMetrics(grpc::ServerContext*, const v1::StreamMetricsRequest*,
                             grpc::ServerWriter<v1::StepMetrics>* writer) override {
    return Send(writer, metrics);
  }
  grpc::Status CancelJob(grpc::ServerContext*, const v1::CancelJobRequest* request,
                         v1::Job* response) override {
    const grpc::Status status = FindJob(request->job_id(), response);
    response->set_state(v1::JOB_STATE_CANCELLED);
    cancel_reason = request->reason();
    return status;
  }
  grpc::Status PauseJob(grpc::ServerContext*, const v1::PauseJobRequest* request,
                        v1::Job* response) override {
    const grpc::Status status = FindJob(request->job_id(), response);
    response->set_state(v1::JOB_STATE_PAUSED);
    return status;
  }
  grpc::Status ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest*, v1::Job*) override {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "the job is not paused");
  }

  grpc::Status RegisterBaseModel(grpc::ServerContext*, const v1::RegisterBaseModelRequest* request,
                                 v1::BaseModel* response) override {
    absl::MutexLock lock(&mutex);
    response->set_name(request->name());
    response->set_base_model_id(request->base_model_id());
    *response->mutable_files() = request->files();
    base_models.push_back(*response);
    return grpc::Status::OK;
  }
  grpc::Status ListBaseModels(grpc::ServerContext*, const v1::ListBaseModelsRequest*,
                              v1::ListBaseModelsResponse* response) override {
    for (const v1::BaseModel& model : base_models) *response->add_base_models() = model;
    return grpc::Status::OK;
  }
  grpc::Status ListDerivatives(grpc::ServerContext*, const v1::ListDerivativesRequest*,
                               v1::ListDerivativesResponse* response) override {
    for (const v1::Derivative& each : derivatives) *response->add_derivatives() = each;
    return grpc::Status::OK;
  }
  grpc::Status GetDerivative(grpc::ServerContext*, const v1::GetDerivativeRequest* request,
                             v1::Derivative* response) override {
    for (const v1::Derivative& each : derivatives) {
      if (each.derivative_id() != request->derivative_id()) continue;
      *response = each;
      return grpc::Status::OK;
    }
    return grpc::Status(grpc::StatusCode::NOT_FOUND,
                        "there is no derivative " + request->derivative_id());
  }
  grpc::Status DownloadFile(grpc::ServerContext*, const v1::DownloadFileRequest* request,
                            grpc::ServerWriter<v1::FileChunk>* writer) override {
    constexpr std::size_t kChunk = 1000;
    ++download_calls;
    std::string data = files.at(request->path());
    if (wrong_bytes && !data.empty()) data[0] ^= 1;
    std::vector<v1::FileChunk> chunks;
    for (auto offset = static_cast<std::size_t>(request->offset()); offset < data.size();
         offset += kChunk) {
      v1::FileChunk chunk;
      chunk.set_data(data.substr(offset, kChunk));
      chunk.set_offset(static_cast<std::int64_t>(offset));
      chunk.set_total_bytes(static_cast<std::int64_t>(data.size()));
      chunks.push_back(chunk);
    }
    return Send(writer, chunks);
  }

  grpc::Status GetUploadOffset(grpc::ServerContext*, const v1::GetUploadOffsetRequest* request,
                               v1::GetUploadOffsetResponse* response) override {
    absl::MutexLock lock(&mutex);
    ++upload_questions;
    response->set_complete(artifacts.count(request->digest()) != 0);
    response->set_offset(static_cast<std::int64_t>(partial[request->digest()].size()));
    return grpc::Status::OK;
  }
  grpc::Status UploadArtifact(grpc::ServerContext*,
                              grpc::ServerReader<v1::UploadArtifactRequest>* reader,
                              v1::UploadArtifactResponse* response) override {
    v1::UploadArtifactRequest message;
    if (!reader->Read(&message)) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "empty");
    const std::string digest = message.digest();
    const bool cut = CutNow();
    absl::MutexLock lock(&mutex);
    std::string& data = partial[digest];
    if (message.offset() != static_cast<std::int64_t>(data.size())) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "wrong offset");
    }
    data += message.data();
    while (reader->Read(&message)) {
      data += message.data();
      if (cut) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut");
    }
    if (DigestOf(data) != digest) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the digest is wrong");
    }
    artifacts[digest] = data;
    response->set_digest(digest);
    return grpc::Status::OK;
  }
  grpc::Status ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest*,
                           v1::ListWorkersResponse* response) override {
    for (const v1::Worker& worker : workers) *response->add_workers() = worker;
    return grpc::Status::OK;
  }
  grpc::Status DrainWorker(grpc::ServerContext*, const v1::DrainWorkerRequest* request,
                           v1::Worker* response) override {
    for (const v1::Worker& worker : workers) {
      if (worker.worker_id() == request->worker_id()) *response = worker;
    }
    response->set_state(v1::WORKER_STATE_DRAINING);
    return grpc::Status::OK;
  }

  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace offshoot::cli
