// Every command against a coordinator that answers from memory: output, exit codes, retries.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "cli/cli_testing.h"
#include "cli/exit_code.h"
#include "cli/fake_coordinator.h"
#include "cli/pull.h"
#include "common/files.h"
#include "common/job_spec.h"
#include "common/temporary_directory.h"

namespace offshoot::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::json;

v1::JobEvent Event(std::int64_t sequence, v1::JobState state, const std::string& type,
                   const std::string& message = "") {
  v1::JobEvent event;
  event.set_job_id("job-1");
  event.set_sequence(sequence);
  event.set_state(state);
  event.set_type(type);
  event.set_message(message);
  return event;
}

class CliTest : public testing::Test {
 protected:
  CliTest() {
    v1::Job job;
    job.set_job_id("job-1");
    job.set_name("demo");
    job.set_state(v1::JOB_STATE_SUCCEEDED);
    job.set_derivative_id("drv-1");
    job.mutable_progress()->set_step(12);
    job.mutable_progress()->set_total_steps(40);
    job.mutable_progress()->set_train_loss(2.91349);
    coordinator_.jobs["job-1"] = job;
    coordinator_.events["job-1"] = {Event(1, v1::JOB_STATE_VALIDATING, "submitted"),
                                    Event(2, v1::JOB_STATE_RUNNING, "started"),
                                    Event(3, v1::JOB_STATE_SUCCEEDED, "published")};
    Write("data.jsonl", "{\"text\": \"hello\"}\n");
    Write("job.yaml", "base_model: org/model\ndatasets:\n  - path: data.jsonl\n    type: text\n");
  }

  void Write(const std::string& name, const std::string& data) {
    ASSERT_TRUE(WriteFileAtomically(directory_.File(name), data).ok());
  }
  Outcome Cli(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(),
                     {"--coordinator", coordinator_.address(), "--wait-ms", "5000"});
    return RunWith(std::move(arguments));
  }
  void Fail(const std::string& message) {
    v1::Job& job = coordinator_.jobs["job-1"];
    job.set_state(v1::JOB_STATE_FAILED);
    job.set_reason_code("NAN_LOSS");
    job.set_message(message);
    job.set_culprit("rank 0 on worker-1");
    job.set_log_tail("line one\nline two\n");
    coordinator_.events["job-1"].back() = Event(3, v1::JOB_STATE_FAILED, "failed", message);
  }
  void Publish() {
    v1::Derivative derivative;
    derivative.set_derivative_id("drv-1");
    derivative.set_name("demo");
    coordinator_.files = {{"adapter_config.json", "{}"},
                          {"merged/model.safetensors", std::string(3500, 'm')},
                          {"empty", ""}};
    for (const auto& [path, data] : coordinator_.files) {
      v1::File* file = derivative.add_files();
      file->set_path(path);
      file->set_digest(DigestOf(data));
      file->set_size_bytes(static_cast<std::int64_t>(data.size()));
    }
    coordinator_.derivatives = {derivative};
  }

  TemporaryDirectory directory_;
  FakeCoordinator coordinator_;
};

TEST_F(CliTest, Submit_PrintsTheIdAndSendsAbsoluteUploadedSpec) {
  const Outcome outcome = Cli({"submit", directory_.File("job.yaml")});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_EQ(outcome.out, "job-1\n");
  ASSERT_EQ(coordinator_.submits.size(), 2u);  // refused once: the data was not there
  const auto spec = ParseJobSpec(coordinator_.submits[1].spec_yaml());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->datasets[0].path, DigestOf("{\"text\": \"hello\"}\n"));
  EXPECT_EQ(spec->base_model, "org/model");
  EXPECT_EQ(spec->name, "job");
  EXPECT_EQ(coordinator_.artifacts.at(spec->datasets[0].path), "{\"text\": \"hello\"}\n");
  EXPECT_FALSE(coordinator_.submits[1].request_id().empty());
  EXPECT_EQ(coordinator_.submits[1].request_id(), coordinator_.submits[0].request_id());
}

TEST_F(CliTest, Submit_DataThere_IsOneCall) {
  const std::string data = "{\"text\": \"hello\"}\n";
  coordinator_.artifacts[DigestOf(data)] = data;
  EXPECT_EQ(Cli({"submit", directory_.File("job.yaml")}).exit_code, kOk);
  EXPECT_EQ(coordinator_.submits.size(), 1u);
  EXPECT_EQ(coordinator_.upload_questions, 0);
}

TEST_F(CliTest, Submit_AsJson_IsTheProtosJson) {
  const Outcome outcome = Cli({"submit", directory_.File("job.yaml"), "-o", "json"});
  EXPECT_EQ(Json::parse(outcome.out)["jobId"], "job-1");
}

TEST_F(CliTest, Submit_RequestIdGiven_IsSentAsItIs) {
  Cli({"submit", directory_.File("job.yaml"), "--request-id", "mine"});
  EXPECT_EQ(coordinator_.submits.at(0).request_id(), "mine");
}

TEST_F(CliTest, Submit_BaseModelOutOfSight_IsUploadedRegisteredAndNamed) {
  ASSERT_TRUE(MakeDirectories(directory_.File("base/sub")).ok());
  Write("base/config.json", "{}");
  Write("base/sub/model.safetensors", std::string(3 << 20, 'w'));
  Write("base/pytorch_model.bin", "pickle");
  Write("job.yaml", "base_model: ./base\nbase_model_id: org/x\ndatasets: [{path: data.jsonl}]\n");
  coordinator_.refused_path = directory_.File("base");
  const Outcome outcome = Cli({"submit", directory_.File("job.yaml")});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  ASSERT_EQ(coordinator_.base_models.size(), 1u);
  const v1::BaseModel& model = coordinator_.base_models[0];
  EXPECT_EQ(model.base_model_id(), "org/x");
  ASSERT_EQ(model.files_size(), 2);
  EXPECT_EQ(model.files(1).path(), "sub/model.safetensors");
  EXPECT_EQ(ParseJobSpec(coordinator_.submits.back().spec_yaml())->base_model, model.name());
  EXPECT_THAT(model.name(), testing::StartsWith("sha256-"));
}

TEST_F(CliTest, Submit_UploadCutShort_GoesOnWhereItStopped) {
  const std::string data(5 << 20, 'd');
  Write("data.jsonl", data);
  coordinator_.cut_streams = 1;
  const Outcome outcome = Cli({"submit", directory_.File("job.yaml")});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_EQ(coordinator_.artifacts.at(DigestOf(data)), data);
}

TEST_F(CliTest, Submit_WrongJobFile_NamesEveryFaultAndSendsNothing) {
  Write("job.yaml", "base_model: m\ndatasets: [{path: data.jsonl}]\nlora_rr: 1\nseed: x\n");
  const Outcome outcome = Cli({"submit", directory_.File("job.yaml")});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.err, HasSubstr("line 3: lora_rr: is not a key here; did you mean lora_r?"));
  EXPECT_THAT(outcome.err, HasSubstr("line 4: seed"));
  EXPECT_TRUE(coordinator_.submits.empty());
}

TEST_F(CliTest, Submit_FileMissing_NamesIt) {
  Outcome outcome = Cli({"submit", "/nowhere/job.yaml"});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.err, HasSubstr("/nowhere/job.yaml"));
  Write("job.yaml", "base_model: m\ndatasets: [{path: gone.jsonl}]\n");
  outcome = Cli({"submit", directory_.File("job.yaml")});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.err, HasSubstr(directory_.File("gone.jsonl") + " is not there"));
}

TEST_F(CliTest, Submit_Follow_PrintsEventsAndTheOutcome) {
  const Outcome outcome = Cli({"submit", directory_.File("job.yaml"), "--follow"});
  EXPECT_EQ(outcome.exit_code, kOk);
  EXPECT_THAT(outcome.out, HasSubstr("job-1\n"));
  EXPECT_THAT(outcome.out, HasSubstr("running  started"));
  EXPECT_THAT(outcome.out, HasSubstr("job job-1 succeeded: derivative drv-1"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\x1b")));  // no terminal, no control sequences
}

TEST_F(CliTest, Watch_JobFails_ExitsOneWithReasonCulpritAndLog) {
  Fail("the loss of step 7 is NaN; lower learning_rate");
  const Outcome outcome = Cli({"watch", "job-1"});
  EXPECT_EQ(outcome.exit_code, kFailed);
  EXPECT_THAT(outcome.out, HasSubstr("lower learning_rate [NAN_LOSS]"));
  EXPECT_THAT(outcome.out, HasSubstr("rank 0 on worker-1"));
  EXPECT_THAT(outcome.out, HasSubstr("line two"));
}

TEST_F(CliTest, Watch_StreamCut_EachEventComesOnce) {
  coordinator_.cut_streams = 2;
  const Outcome outcome = Cli({"watch", "job-1", "-o", "json"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  std::istringstream lines(outcome.out);
  std::vector<std::string> sequences;
  for (std::string line; std::getline(lines, line);) {
    sequences.push_back(Json::parse(line)["sequence"].get<std::string>());
  }
  EXPECT_THAT(sequences, ElementsAre("1", "2", "3"));
}

TEST_F(CliTest, Watch_OnATerminal_ShowsALiveLine) {
  const Outcome outcome =
      RunWith({"watch", "job-1", "--coordinator", coordinator_.address()}, true);
  EXPECT_EQ(outcome.exit_code, kOk);
  EXPECT_THAT(outcome.out, HasSubstr("step 12/40 (30 %)  loss 2.913"));
}

TEST_F(CliTest, UnknownJob_ExitsTwoWithTheCoordinatorsSentence) {
  for (const char* verb : {"status", "watch", "cancel", "pause"}) {
    const Outcome outcome = Cli({verb, "job-9"});
    EXPECT_EQ(outcome.exit_code, kWrongUse) << verb;
    EXPECT_THAT(outcome.err, HasSubstr("offshoot: there is no job job-9")) << verb;
  }
}

TEST_F(CliTest, List_IsATable_AndJsonIsTheResponse) {
  v1::Job waiting;
  waiting.set_job_id("job-2");
  waiting.set_state(v1::JOB_STATE_QUEUED);
  waiting.set_message("waits for a free device");
  coordinator_.jobs["job-2"] = waiting;
  Outcome outcome = Cli({"list"});
  EXPECT_EQ(outcome.exit_code, kOk);
  EXPECT_THAT(outcome.out, HasSubstr("JOB    NAME  STATE      STEP   LOSS   AGE  MESSAGE\n"
                                     "job-1  demo  succeeded  12/40  2.913"));
  EXPECT_THAT(outcome.out, HasSubstr("waits for a free device"));
  outcome = Cli({"list", "--state", "queued", "-o", "json"});
  const Json json = Json::parse(outcome.out);
  ASSERT_EQ(json["jobs"].size(), 1u);
  EXPECT_EQ(json["jobs"][0]["jobId"], "job-2");
  EXPECT_EQ(json["jobs"][0]["state"], "JOB_STATE_QUEUED");
}

TEST_F(CliTest, List_ManyPages_AreJoinedUpToTheLimit) {
  for (int i = 100; i < 2600; ++i) {
    v1::Job job;
    job.set_job_id(absl::StrCat("job-1", i));
    coordinator_.jobs[job.job_id()] = job;
  }
  const Outcome outcome = Cli({"list", "--limit", "2200", "-o", "json"});
  EXPECT_EQ(Json::parse(outcome.out)["jobs"].size(), 2200u);
  EXPECT_EQ(coordinator_.list_calls, 3);
}

TEST_F(CliTest, List_WrongState_NamesThoseThereAre) {
  const Outcome outcome = Cli({"list", "--state", "sleeping"});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.err, HasSubstr("there are validating, queued, starting"));
}

TEST_F(CliTest, Status_ShowsProgressAndAttempts) {
  v1::Attempt* attempt = coordinator_.jobs["job-1"].add_attempts();
  attempt->set_number(1);
  attempt->set_worker_name("worker-1");
  attempt->add_devices("cpu:0");
  attempt->set_first_step(1);
  attempt->set_last_step(12);
  const Outcome outcome = Cli({"status", "job-1"});
  EXPECT_EQ(outcome.exit_code, kOk);
  EXPECT_THAT(outcome.out, HasSubstr("succeeded  step 12/40"));
  EXPECT_THAT(outcome.out, HasSubstr("worker-1  cpu:0    1-12"));
  EXPECT_EQ(Json::parse(Cli({"status", "job-1", "-o", "json"}).out)["progress"]["totalSteps"],
            "40");
}

TEST_F(CliTest, CancelPauseResume_SayTheNewState) {
  Outcome outcome = Cli({"cancel", "job-1", "--reason", "a mistake"});
  EXPECT_EQ(outcome.exit_code, kOk);
  EXPECT_EQ(outcome.out, "job job-1 cancelled\n");
  EXPECT_EQ(coordinator_.cancel_reason, "a mistake");
  EXPECT_EQ(Cli({"pause", "job-1"}).out, "job job-1 paused\n");
  outcome = Cli({"resume", "job-1"});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.err, HasSubstr("not paused"));
}

TEST_F(CliTest, Cancel_SeveralWithOneUnknown_StillCancelsTheOthers) {
  const Outcome outcome = Cli({"cancel", "job-9", "job-1"});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.out, HasSubstr("job job-1 cancelled"));
}

TEST_F(CliTest, Logs_StreamCut_NoByteIsLostOrRepeated) {
  for (const auto& [attempt, offset, data] : std::vector<std::tuple<int, int, std::string>>{
           {1, 0, "abc"}, {1, 3, "de\n"}, {2, 0, "f\n"}}) {
    v1::LogChunk chunk;
    chunk.set_attempt(attempt);
    chunk.set_offset(offset);
    chunk.set_data(data);
    coordinator_.logs.push_back(chunk);
  }
  coordinator_.cut_streams = 1;
  const Outcome outcome = Cli({"logs", "job-1"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_EQ(outcome.out, "abcde\nf\n");
}

TEST_F(CliTest, Metrics_AreLinesOrJsonLines) {
  for (int step = 1; step <= 2; ++step) {
    v1::StepMetrics metrics;
    metrics.set_attempt(1);
    metrics.set_step(step);
    metrics.set_train_loss(3.5);
    coordinator_.metrics.push_back(metrics);
    metrics.set_eval_loss(3.25);
    coordinator_.metrics.push_back(metrics);
  }
  coordinator_.cut_streams = 1;
  Outcome outcome = Cli({"metrics", "job-1"});
  EXPECT_EQ(outcome.exit_code, kOk);
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 5);
  EXPECT_THAT(outcome.out, HasSubstr("held-out loss 3.2500"));
  outcome = Cli({"metrics", "job-1", "-o", "json"});
  EXPECT_EQ(Json::parse(outcome.out.substr(0, outcome.out.find('\n')))["trainLoss"], 3.5);
}

TEST_F(CliTest, Workers_ListedAndDrainedByName) {
  v1::Worker worker;
  worker.set_worker_id("wrk-1");
  worker.set_name("node");
  worker.set_state(v1::WORKER_STATE_READY);
  v1::Device* device = worker.mutable_inventory()->add_devices();
  device->set_device_id("cpu:0");
  device->set_threads(2);
  worker.mutable_inventory()->set_memory_bytes(8LL << 30);
  coordinator_.workers = {worker};
  EXPECT_THAT(Cli({"workers"}).out, HasSubstr("wrk-1   node  ready  cpu:0@2  8.0 GiB"));
  EXPECT_THAT(Cli({"workers", "list"}).out, HasSubstr("wrk-1"));
  EXPECT_EQ(Cli({"workers", "drain", "node"}).out, "worker node draining\n");
  const Outcome outcome = Cli({"workers", "drain", "nobody"});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.err, HasSubstr("there is no worker nobody"));
}

TEST_F(CliTest, Models_RegisterWithUpload_ThenListed) {
  ASSERT_TRUE(MakeDirectories(directory_.File("base")).ok());
  Write("base/config.json", "{}");
  const Outcome outcome = Cli({"models", "register", "tiny", "--path", directory_.File("base"),
                               "--upload", "--base-model-id", "org/tiny"});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_EQ(coordinator_.base_models.at(0).files(0).path(), "config.json");
  EXPECT_THAT(Cli({"models"}).out, HasSubstr("org/tiny"));
}

TEST_F(CliTest, Derivatives_ListedAndShown) {
  Publish();
  coordinator_.derivatives[0].set_base_eval_loss(4.25);
  coordinator_.derivatives[0].set_eval_loss(2.9);
  EXPECT_THAT(Cli({"derivatives"}).out, HasSubstr("4.250"));
  EXPECT_THAT(Cli({"derivatives", "show", "drv-1"}).out, HasSubstr("base 4.250, derivative 2.900"));
  EXPECT_EQ(Cli({"derivatives", "show", "drv-9"}).exit_code, kWrongUse);
}

TEST_F(CliTest, Pull_PutsAllFilesInPlaceAtOnce) {
  Publish();
  const std::string target = directory_.File("out");
  const Outcome outcome = Cli({"pull", "drv-1", target});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_EQ(ReadFile(target + "/merged/model.safetensors").value(), std::string(3500, 'm'));
  EXPECT_EQ(ReadFile(target + "/empty").value(), "");
  EXPECT_FALSE(PathExists(target + ".partial"));
  // Again: nothing is fetched, nothing is wrong.
  const int calls = coordinator_.download_calls;
  EXPECT_EQ(Cli({"pull", "drv-1", target}).exit_code, kOk);
  EXPECT_EQ(coordinator_.download_calls, calls);
}

TEST_F(CliTest, Pull_CutShort_GoesOnWhereItStopped) {
  Publish();
  coordinator_.cut_streams = 3;
  const Outcome outcome = Cli({"pull", "drv-1", directory_.File("out")});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_EQ(DigestOfFile(directory_.File("out/merged/model.safetensors")).value(),
            DigestOf(std::string(3500, 'm')));
}

TEST_F(CliTest, Pull_PartialLeftWrong_IsBegunAnew) {
  Publish();
  ASSERT_TRUE(MakeDirectories(directory_.File("out.partial/merged")).ok());
  Write("out.partial/merged/model.safetensors", std::string(2000, 'x'));
  Write("out.partial/stranger", "s");
  const Outcome outcome = Cli({"pull", "drv-1", directory_.File("out")});
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
  EXPECT_EQ(ReadFile(directory_.File("out/merged/model.safetensors")).value(),
            std::string(3500, 'm'));
  EXPECT_FALSE(PathExists(directory_.File("out/stranger")));
}

TEST_F(CliTest, Pull_BytesWrong_IsRefusedAndNothingAppears) {
  Publish();
  coordinator_.wrong_bytes = true;
  const Outcome outcome = Cli({"pull", "drv-1", directory_.File("out")});
  EXPECT_EQ(outcome.exit_code, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("does not have the digest"));
  EXPECT_FALSE(PathExists(directory_.File("out")));
}

TEST_F(CliTest, Pull_DirectoryInUse_IsLeftAlone) {
  Publish();
  ASSERT_TRUE(MakeDirectories(directory_.File("out")).ok());
  Write("out/mine", "x");
  const Outcome outcome = Cli({"pull", "drv-1", directory_.File("out")});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  EXPECT_THAT(outcome.err, HasSubstr("is not empty"));
  EXPECT_EQ(ReadFile(directory_.File("out/mine")).value(), "x");
}

TEST_F(CliTest, Pull_EarlierDerivativeThere_IsReplacedOnlyWhenAsked) {
  Publish();
  ASSERT_TRUE(MakeDirectories(directory_.File("out")).ok());
  Write("out/offshoot.json", "{}");
  Client client(coordinator_.address(), absl::Seconds(5));
  const v1::Derivative derivative = coordinator_.derivatives[0];
  EXPECT_FALSE(PullDerivative(client, derivative, directory_.File("out"), Existing::kKeep).ok());
  const absl::Status status =
      PullDerivative(client, derivative, directory_.File("out"), Existing::kReplace);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_FALSE(PathExists(directory_.File("out/offshoot.json")));
  EXPECT_TRUE(PathExists(directory_.File("out/adapter_config.json")));
  EXPECT_FALSE(PathExists(directory_.File("out.partial")));
}

TEST_F(CliTest, Pull_PathThatLeaves_IsRefused) {
  Publish();
  coordinator_.derivatives[0].mutable_files(0)->set_path("../evil");
  const Outcome outcome = Cli({"pull", "drv-1", directory_.File("out")});
  EXPECT_EQ(outcome.exit_code, kFailed);
  EXPECT_THAT(outcome.err, HasSubstr("../evil"));
  EXPECT_FALSE(PathExists(directory_.File("evil")));
}

TEST_F(CliTest, CoordinatorStarting_CallIsMadeAgain) {
  coordinator_.unavailable_calls = 3;
  EXPECT_EQ(Cli({"status", "job-1"}).exit_code, kOk);
}

TEST_F(CliTest, CoordinatorComesLater_IsWaitedFor) {
  const std::string address = coordinator_.address();
  coordinator_.Stop();
  Outcome outcome{-1, "", ""};
  std::thread waiting([&] {
    outcome = RunWith({"status", "job-1", "--coordinator", address, "--wait-ms", "20000"});
  });
  coordinator_.Start(address);
  waiting.join();
  EXPECT_EQ(outcome.exit_code, kOk) << outcome.err;
}

TEST_F(CliTest, CoordinatorAway_ExitsThreeAndSaysWhatToDo) {
  const std::string address = coordinator_.address();
  coordinator_.Stop();
  for (const char* verb : {"status", "watch", "logs"}) {
    const Outcome outcome = RunWith({verb, "job-1", "--coordinator", address, "--wait-ms", "150"});
    EXPECT_EQ(outcome.exit_code, kCannotReach) << verb;
    EXPECT_THAT(outcome.err,
                HasSubstr("cannot reach the coordinator at " + address + " within 150ms"));
    EXPECT_THAT(outcome.err, HasSubstr("--coordinator"));
  }
}

TEST_F(CliTest, AddressFromEnvironment_GivesWayToTheOption) {
  setenv("OFFSHOOT_COORDINATOR", coordinator_.address().c_str(), 1);
  EXPECT_EQ(RunWith({"status", "job-1"}).exit_code, kOk);
  const Outcome outcome =
      RunWith({"status", "job-1", "--coordinator", "127.0.0.1:1", "--wait-ms", "50"});
  EXPECT_EQ(outcome.exit_code, kCannotReach);
  EXPECT_THAT(outcome.err, HasSubstr("127.0.0.1:1"));
  unsetenv("OFFSHOOT_COORDINATOR");
}

TEST_F(CliTest, Validate_NeedsNoCoordinator) {
  Outcome outcome = RunWith({"validate", directory_.File("job.yaml")});
  EXPECT_EQ(outcome.exit_code, kOk);
  EXPECT_THAT(outcome.out, HasSubstr("is valid"));
  Write("bad.yaml", "base_model: m\ndatasets: [{path: data.jsonl}]\nlr: 1\n");
  outcome = RunWith({"validate", directory_.File("bad.yaml"), "-o", "json"});
  EXPECT_EQ(outcome.exit_code, kWrongUse);
  const Json json = Json::parse(outcome.out);
  EXPECT_FALSE(json["valid"].get<bool>());
  EXPECT_EQ(json["faults"][0]["line"], 3);
  EXPECT_EQ(json["faults"][0]["key"], "lr");
  EXPECT_THAT(RunWith({"validate", "--keys"}).out, HasSubstr("per_device_train_batch_size"));
}

}  // namespace
}  // namespace offshoot::cli
