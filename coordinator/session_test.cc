// The way of a job between a real coordinator and a scripted worker, with everything that can go
// wrong between them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "coordinator/testing/coordinator_fixture.h"

namespace offshoot {
namespace {

using ::testing::HasSubstr;

class SessionTest : public CoordinatorFixture {
 protected:
  // A job that trains on the worker.
  v1::Assignment RunJob(ScriptedWorker& worker) {
    Submit(Spec());
    worker.PassPreflight();
    const v1::Assignment assignment = worker.AwaitAssignment();
    worker.Start(assignment);
    return assignment;
  }
};

TEST_F(SessionTest, WholeWay_OfAJob_EndsInADerivative) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const std::string job_id = Submit(Spec("seed: 7\n"));
  worker.PassPreflight();
  const v1::Assignment assignment = worker.AwaitAssignment();
  EXPECT_EQ(assignment.kind(), v1::ASSIGNMENT_KIND_TRAIN);
  EXPECT_EQ(assignment.job_id(), job_id);
  EXPECT_EQ(assignment.attempt(), 1);
  EXPECT_FALSE(assignment.has_resume_from());
  ASSERT_EQ(assignment.device_ids_size(), 1);
  EXPECT_EQ(assignment.device_ids(0), "cpu:0");
  ASSERT_EQ(assignment.inputs_size(), 2);
  EXPECT_EQ(assignment.inputs(0).spec_pointer(), "/base_model/path");
  EXPECT_EQ(assignment.inputs(0).shared_path(), directory.File("m.gguf"));
  EXPECT_EQ(assignment.inputs(0).files(0).digest(), DigestOf("weights"));
  EXPECT_EQ(assignment.inputs(1).spec_pointer(), "/datasets/0/path");
  const auto spec = nlohmann::json::parse(assignment.trainer_spec_json());
  EXPECT_EQ(spec.at("seed"), 7);
  EXPECT_EQ(spec.at("base_model").at("digest"), DigestOf("weights"));
  EXPECT_EQ(spec.at("device"), "cpu");
  worker.Start(assignment);
  AwaitState(job_id, v1::JOB_STATE_RUNNING);

  v1::WorkerMessage output;
  output.mutable_attempt_output()->set_job_id(job_id);
  output.mutable_attempt_output()->set_attempt(1);
  output.mutable_attempt_output()->set_log("step 1\n");
  v1::StepMetrics* metrics = output.mutable_attempt_output()->add_metrics();
  metrics->set_step(1);
  metrics->set_train_loss(2.5);
  output.mutable_attempt_output()->mutable_progress()->set_step(1);
  output.mutable_attempt_output()->mutable_progress()->set_total_steps(100);
  worker.Send(output);

  v1::AttemptEvent publishing = ScriptedWorker::Event(assignment, 2);
  publishing.mutable_publishing()->set_last_step(100);
  worker.Report(publishing);
  v1::AttemptEvent result = ScriptedWorker::Event(assignment, 3);
  *result.mutable_result()->add_files() = worker.UploadedFile("adapter_config.json", "{}");
  *result.mutable_result()->add_files() = worker.UploadedFile("merged/config.json", "{ }");
  result.mutable_result()->set_base_eval_loss(4.25);
  result.mutable_result()->set_eval_loss(2.9);
  result.mutable_result()->set_first_step(1);
  result.mutable_result()->set_last_step(100);
  EXPECT_FALSE(worker.Report(result).fenced());
  AwaitState(job_id, v1::JOB_STATE_SUCCEEDED);
  EXPECT_FALSE(worker.Report(result).fenced()) << "a repeat";
  const std::string next = Submit(Spec("seed: 7\n"));
  EXPECT_EQ(worker.AwaitAssignment().job_id(), next) << "the device is free at once";

  const v1::Job job = Get(job_id);
  EXPECT_EQ(job.progress().train_loss(), 0);
  EXPECT_EQ(job.progress().eval_loss(), 2.9);
  ASSERT_EQ(job.attempts_size(), 1);
  EXPECT_EQ(job.attempts(0).first_step(), 1);
  EXPECT_EQ(job.attempts(0).last_step(), 100);
  EXPECT_EQ(job.attempts(0).worker_name(), "name-of-wrk-1");
  grpc::ClientContext context;
  v1::GetDerivativeRequest request;
  request.set_derivative_id(job.derivative_id());
  v1::Derivative derivative;
  ASSERT_TRUE(models->GetDerivative(&context, request, &derivative).ok());
  EXPECT_EQ(derivative.job_id(), job_id);
  EXPECT_EQ(derivative.base_model_digest(), DigestOf("weights"));
  EXPECT_EQ(derivative.base_eval_loss(), 4.25);
  EXPECT_EQ(derivative.files_size(), 2);
  grpc::ClientContext download_context;
  v1::DownloadFileRequest download;
  download.set_derivative_id(job.derivative_id());
  download.set_path("merged/config.json");
  auto reader = models->DownloadFile(&download_context, download);
  v1::FileChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(chunk.data(), "{ }");
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(SessionTest, PreflightAnswer_IsCachedForTheSameQuestion) {
  ScriptedWorker worker(address(), "wrk-1", 2);
  worker.Connect();
  Submit(Spec());
  worker.PassPreflight();
  EXPECT_EQ(worker.AwaitAssignment().kind(), v1::ASSIGNMENT_KIND_TRAIN);
  const std::string second = Submit(Spec());
  const v1::Assignment assignment = worker.AwaitAssignment();
  EXPECT_EQ(assignment.kind(), v1::ASSIGNMENT_KIND_TRAIN);
  EXPECT_EQ(assignment.job_id(), second);
}

TEST_F(SessionTest, PreflightRefusal_FailsTheJobWithItsReason) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const std::string job_id = Submit(Spec());
  v1::AttemptEvent event = ScriptedWorker::Event(worker.AwaitAssignment(), 1);
  event.mutable_preflight()->set_reason_code("BAD_DATA");
  event.mutable_preflight()->set_message("line 7 is no JSON");
  worker.Report(event);
  AwaitState(job_id, v1::JOB_STATE_FAILED);
  EXPECT_EQ(Get(job_id).reason_code(), "BAD_DATA");
  EXPECT_EQ(Get(job_id).message(), "line 7 is no JSON");
}

TEST_F(SessionTest, JobThatNeedsMoreMemory_WaitsForADeviceThatHasIt) {
  ScriptedWorker small(address(), "wrk-1");
  small.Connect();
  Submit(Spec());
  small.PassPreflight(R"({"memory": {"cpu": {"bytes": 50000000000, "parts": "weights 50 GB"}}})");
  small.Disconnect();
  StartCoordinator();  // what the check found is kept
  ScriptedWorker again(address(), "wrk-1");
  again.Connect();
  ScriptedWorker large(address(), "wrk-2");
  v1::Register registration = large.MakeRegister();
  for (v1::Device& device : *registration.mutable_inventory()->mutable_devices()) {
    device.set_memory_bytes(60'000'000'000);
  }
  large.Connect(registration);
  EXPECT_EQ(large.AwaitAssignment().kind(), v1::ASSIGNMENT_KIND_TRAIN);
}

TEST_F(SessionTest, MeasuredSpeed_DecidesWhichDeviceIsTaken) {
  ScriptedWorker slow(address(), "wrk-1");
  slow.Connect();
  ScriptedWorker fast(address(), "wrk-2");
  fast.Connect();
  v1::WorkerMessage heartbeat;
  (*heartbeat.mutable_heartbeat()->mutable_device_speeds())["cpu:0"] = 3.5;
  (*heartbeat.mutable_heartbeat()->mutable_device_speeds())["no such device"] = 9;
  fast.Send(heartbeat);
  double known = 0;
  for (const absl::Time end = absl::Now() + kPatience; known == 0 && absl::Now() < end;) {
    grpc::ClientContext context;
    v1::ListWorkersResponse workers;
    ASSERT_TRUE(fast.stub().ListWorkers(&context, v1::ListWorkersRequest(), &workers).ok());
    for (const v1::Worker& worker : workers.workers()) {
      for (const v1::Device& device : worker.inventory().devices()) known += device.speed();
    }
  }
  EXPECT_EQ(known, 3.5);
  Submit(Spec());
  slow.PassPreflight();
  EXPECT_EQ(fast.AwaitAssignment().kind(), v1::ASSIGNMENT_KIND_TRAIN);
}

TEST_F(SessionTest, RepeatedEvent_IsAcknowledgedAndCountsOnce) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  const v1::AttemptEvent checkpoint = worker.CheckpointEvent(assignment, 2, 10);
  EXPECT_EQ(worker.Report(checkpoint).sequence(), 2);
  const std::int64_t sequence = Get(assignment.job_id()).last_sequence();
  const v1::EventAck again = worker.Report(checkpoint);
  EXPECT_EQ(again.sequence(), 2);
  EXPECT_FALSE(again.fenced());
  EXPECT_EQ(Get(assignment.job_id()).last_sequence(), sequence);
}

TEST_F(SessionTest, LeaseExpires_NextAttemptResumesFromTheCheckpoint_AndTheOldOneIsFenced) {
  ScriptedWorker first(address(), "wrk-1");
  first.Connect();
  const v1::Assignment old = RunJob(first);
  first.Report(first.CheckpointEvent(old, 2, 20));
  ScriptedWorker second(address(), "wrk-2");
  second.Connect();
  Advance(options.controller.lease - absl::Milliseconds(1));
  EXPECT_EQ(Get(old.job_id()).state(), v1::JOB_STATE_RUNNING);
  Advance(absl::Seconds(1));
  AwaitState(old.job_id(), v1::JOB_STATE_QUEUED);
  second.SendHeartbeat({});   // of the two it alone is heard of
  Advance(absl::Seconds(5));  // past the wait after a lost attempt

  const v1::Assignment next = second.AwaitAssignment();
  EXPECT_EQ(next.attempt(), 2);
  EXPECT_EQ(next.resume_from().step(), 20);
  ASSERT_EQ(next.resume_from().files_size(), 1);
  const auto spec = nlohmann::json::parse(next.trainer_spec_json());
  const auto attempts = spec.at("lineage").at("attempts");
  ASSERT_EQ(attempts.size(), 1u);
  EXPECT_EQ(attempts[0].at("first_step"), 1);
  EXPECT_EQ(attempts[0].at("last_step"), 20);
  EXPECT_EQ(attempts[0].at("worker"), "name-of-wrk-1");

  EXPECT_TRUE(first.Report(first.CheckpointEvent(old, 3, 30)).fenced());
  const grpc::Status upload = first.Upload("late bytes", old.job_id(), 1);
  EXPECT_EQ(upload.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << upload.error_message();
  first.SendHeartbeat({{old.job_id(), 1}});
  EXPECT_EQ(first.AwaitStop().reason_code(), "FENCED");
  EXPECT_EQ(Get(old.job_id()).progress().checkpoint_step(), 20);
}

TEST_F(SessionTest, CheckpointWithoutItsFiles_DoesNotCount) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  v1::AttemptEvent event = ScriptedWorker::Event(assignment, 2);
  event.mutable_checkpointed()->mutable_checkpoint()->set_step(10);
  v1::File* file = event.mutable_checkpointed()->mutable_checkpoint()->add_files();
  file->set_path("manifest.json");
  file->set_digest(DigestOf("never uploaded"));
  file->set_size_bytes(14);
  EXPECT_FALSE(worker.Report(event).fenced());
  EXPECT_EQ(Get(assignment.job_id()).progress().checkpoint_step(), 0);
}

TEST_F(SessionTest, CoordinatorRestarts_AttemptGoesOnAsIfNothingHappened) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  worker.Report(worker.CheckpointEvent(assignment, 2, 10));
  coordinator.reset();
  worker.Disconnect();
  clock.Advance(absl::Hours(3));  // it was away for long: leases get a whole period first
  StartCoordinator();
  ScriptedWorker again(address(), "wrk-1");
  EXPECT_EQ(Get(assignment.job_id()).state(), v1::JOB_STATE_RUNNING);
  again.Connect({{assignment.job_id(), 1}});
  EXPECT_FALSE(again.Report(again.CheckpointEvent(assignment, 2, 10)).fenced()) << "a repeat";
  EXPECT_FALSE(again.Report(again.CheckpointEvent(assignment, 3, 20)).fenced());
  const v1::Job job = Get(assignment.job_id());
  EXPECT_EQ(job.state(), v1::JOB_STATE_RUNNING);
  EXPECT_EQ(job.attempt(), 1);
  EXPECT_EQ(job.progress().checkpoint_step(), 20);
}

TEST_F(SessionTest, CoordinatorRestarts_WorkerThatNeverComesBack_LosesItsAttempt) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  coordinator.reset();
  StartCoordinator();
  EXPECT_EQ(Get(assignment.job_id()).state(), v1::JOB_STATE_RUNNING);
  Advance(options.controller.lease);
  AwaitState(assignment.job_id(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(Get(assignment.job_id()).attempts(0).reason_code(), "WORKER_LOST");
}

TEST_F(SessionTest, WorkerComesBackWithoutItsAttempt_JobIsPlacedAgain) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  v1::Register fresh = worker.MakeRegister();
  fresh.set_incarnation_id("inc-new");
  worker.Connect(fresh);
  AwaitState(assignment.job_id(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(Get(assignment.job_id()).attempts(0).reason_code(), "WORKER_RESTARTED");
  Advance(absl::Seconds(2));
  EXPECT_EQ(worker.AwaitAssignment().attempt(), 2);
}

TEST_F(SessionTest, WorkerComesBackWithItsAttempt_KeepsItAndDelivers) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  v1::Register fresh = worker.MakeRegister({{assignment.job_id(), 1}});
  fresh.set_incarnation_id("inc-new");
  worker.Connect(fresh);
  v1::AttemptEvent ended = ScriptedWorker::Event(assignment, 2);
  ended.mutable_ended()->set_reason_code("TRAINER_KILLED");
  ended.mutable_ended()->set_message("signal 9");
  ended.mutable_ended()->set_retryable(true);
  ended.mutable_ended()->set_last_step(7);
  EXPECT_FALSE(worker.Report(ended).fenced());
  const v1::Job job = Get(assignment.job_id());
  EXPECT_EQ(job.attempts(0).reason_code(), "TRAINER_KILLED");
  EXPECT_EQ(job.attempts(0).last_step(), 7);
}

TEST_F(SessionTest, Cancel_StopsTheAttempt_AndItsDeviceIsFreeWhenItEnded) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  v1::Job job;
  ASSERT_TRUE(Cancel(assignment.job_id(), &job).ok());
  EXPECT_EQ(job.state(), v1::JOB_STATE_CANCELLED);
  const v1::StopAttempt stop = worker.AwaitStop();
  EXPECT_EQ(stop.attempt(), 1);
  EXPECT_FALSE(stop.checkpoint());
  ASSERT_TRUE(Cancel(assignment.job_id(), &job).ok()) << "asking twice is asking once";
  const std::string next = Submit(Spec());
  EXPECT_EQ(Get(next).state(), v1::JOB_STATE_QUEUED) << "the device is still taken";
  EXPECT_THAT(Get(next).message(), HasSubstr("waiting for 1 device"));
  v1::AttemptEvent ended = ScriptedWorker::Event(assignment, 2);
  ended.mutable_ended()->set_reason_code("STOPPED");
  worker.Report(ended);
  EXPECT_EQ(worker.AwaitAssignment().job_id(), next);
}

TEST_F(SessionTest, Cancel_WhileTheWorkerIsAway_IsToldWhenItComesBack) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  worker.Disconnect();
  v1::Job job;
  ASSERT_TRUE(Cancel(assignment.job_id(), &job).ok());
  worker.Connect({{assignment.job_id(), 1}});
  EXPECT_EQ(worker.AwaitStop().reason_code(), "CANCELLED");
}

TEST_F(SessionTest, PauseAndResume_GoesOnFromTheCheckpoint) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  v1::Job job;
  ASSERT_TRUE(Pause(assignment.job_id(), &job).ok());
  const v1::StopAttempt stop = worker.AwaitStop();
  EXPECT_TRUE(stop.checkpoint());
  EXPECT_EQ(stop.reason_code(), "PAUSED");
  worker.Report(worker.CheckpointEvent(assignment, 2, 13));
  v1::AttemptEvent ended = ScriptedWorker::Event(assignment, 3);
  ended.mutable_ended()->set_reason_code("STOPPED");
  worker.Report(ended);
  EXPECT_EQ(Get(assignment.job_id()).state(), v1::JOB_STATE_PAUSED);
  ASSERT_TRUE(Resume(assignment.job_id(), &job).ok());
  const v1::Assignment next = worker.AwaitAssignment();
  EXPECT_EQ(next.attempt(), 2);
  EXPECT_EQ(next.resume_from().step(), 13);
}

TEST_F(SessionTest, Drain_MovesRunningJobsToAnotherWorker) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  ScriptedWorker other(address(), "wrk-2");
  other.Connect();
  grpc::ClientContext context;
  v1::DrainWorkerRequest request;
  request.set_worker_id("wrk-1");
  request.set_checkpoint_running(true);
  v1::Worker drained;
  ASSERT_TRUE(worker.stub().DrainWorker(&context, request, &drained).ok());
  EXPECT_EQ(drained.state(), v1::WORKER_STATE_DRAINING);
  EXPECT_EQ(worker.AwaitStop().reason_code(), "DRAINED");
  v1::AttemptEvent ended = ScriptedWorker::Event(assignment, 2);
  ended.mutable_ended()->set_reason_code("STOPPED");
  worker.Report(ended);
  EXPECT_EQ(other.AwaitAssignment().attempt(), 2);
}

TEST_F(SessionTest, OtherProtocolVersion_IsRefusedWithBothNumbers) {
  ScriptedWorker worker(address(), "wrk-1");
  v1::Register registration = worker.MakeRegister();
  registration.set_protocol_version(99);
  worker.Connect(registration);
  const grpc::Status status = worker.AwaitEnd();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("99"));
}

TEST_F(SessionTest, FirstMessageNotRegister_EndsTheSession) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  worker.Send([&] {
    v1::WorkerMessage message;
    *message.mutable_register_() = worker.MakeRegister();
    return message;
  }());
  EXPECT_EQ(worker.AwaitEnd().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(SessionTest, SecondSessionOfAWorker_EndsTheFirst) {
  ScriptedWorker first(address(), "wrk-1");
  first.Connect();
  ScriptedWorker second(address(), "wrk-1");
  second.Connect();
  EXPECT_EQ(first.AwaitEnd().error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(SessionTest, StrangersEvent_IsFencedAndChangesNothing) {
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const v1::Assignment assignment = RunJob(worker);
  ScriptedWorker liar(address(), "wrk-2");
  liar.Connect();
  v1::AttemptEvent ended = ScriptedWorker::Event(assignment, 2);
  ended.mutable_ended()->set_reason_code("NAN_LOSS");
  EXPECT_TRUE(liar.Report(ended).fenced());
  for (const int attempt : {-1, 0, 2, 2'000'000'000}) {
    ended.set_attempt(attempt);
    EXPECT_TRUE(worker.Report(ended).fenced()) << attempt;
  }
  EXPECT_EQ(Get(assignment.job_id()).state(), v1::JOB_STATE_RUNNING);
}

TEST_F(SessionTest, MaxRuntime_EndsTheJob) {
  options.controller.lease = absl::Hours(1);
  StartCoordinator();
  ScriptedWorker worker(address(), "wrk-1");
  worker.Connect();
  const std::string job_id = Submit(Spec("max_runtime: 60\n"));
  worker.PassPreflight();
  worker.Start(worker.AwaitAssignment());
  Advance(absl::Seconds(59));
  EXPECT_EQ(Get(job_id).state(), v1::JOB_STATE_RUNNING);
  Advance(absl::Seconds(2));
  EXPECT_EQ(worker.AwaitStop().reason_code(), "RUNTIME_EXCEEDED");
  AwaitState(job_id, v1::JOB_STATE_FAILED);
  EXPECT_EQ(Get(job_id).reason_code(), "RUNTIME_EXCEEDED");
}

}  // namespace
}  // namespace offshoot
