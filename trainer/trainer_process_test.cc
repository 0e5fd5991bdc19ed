// The program as a whole, from outside: what a worker sees when things go well, when it kills, and
// when the input is bad.

#include "trainer/trainer_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <sstream>

#include "trainer/tiny_job.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

class TrainerProcessTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { signal(SIGPIPE, SIG_IGN); }

  TrainerOptions Train(const nlohmann::json& spec, const std::string& work) const {
    TrainerOptions options;
    options.arguments = {"train", "--spec", tiny_.WriteSpec(work + ".json", spec), "--work-dir",
                         tiny_.File(work)};
    options.log_path = tiny_.File(work + ".log");
    return options;
  }

  // Runs to its end, confirming each checkpoint; returns the exit code.
  int RunToEnd(const TrainerOptions& options, std::vector<nlohmann::json>* events = nullptr) const {
    TrainerProcess process(options);
    while (std::optional<nlohmann::json> event = process.NextEvent()) {
      Confirm(process, *event);
      if (events != nullptr) {
        events->push_back(*event);
      }
    }
    const int code = process.Wait();
    EXPECT_NE(code, 127) << "cannot start " << OFFSHOOT_TRAINER_PROGRAM;
    return code;
  }

  static void Confirm(TrainerProcess& process, const nlohmann::json& event) {
    if (event.at("event") == "checkpoint") {
      process.Send({{"command", "checkpoint_stored"}, {"step", event.at("step")}});
    }
  }

  // The newest complete checkpoint of a work directory; null if there is none.
  nlohmann::json NewestCheckpoint(const std::string& work) const {
    std::string newest;
    std::error_code failure;
    for (const auto& entry : fs::directory_iterator(tiny_.File(work) + "/checkpoints", failure)) {
      const std::string path = entry.path().string();
      if (!path.ends_with(".tmp") && fs::exists(path + "/manifest.json")) {
        newest = std::max(newest, path);
      }
    }
    return newest.empty() ? nlohmann::json() : nlohmann::json(newest);
  }

  std::string ResultAdapter(const std::string& work) const {
    return ReadWholeFile(tiny_.File(work) + "/result/adapter_model.safetensors");
  }

  // What a run that cannot succeed says; it must end with 4 and one sentence.
  std::string FailureOf(const TrainerOptions& options, const std::string& reason) const {
    std::vector<nlohmann::json> events;
    EXPECT_EQ(RunToEnd(options, &events), 4);
    if (events.empty() || events.back().at("event") != "failed") {
      ADD_FAILURE() << "no failed event; log: " << ReadWholeFile(options.log_path);
      return "";
    }
    EXPECT_EQ(events.back().at("reason_code"), reason);
    const std::string message = events.back().at("message");
    EXPECT_THAT(message, Not(HasSubstr("\n")));
    return message;
  }

  TinyJob tiny_;
};

TEST_F(TrainerProcessTest, WholeJob_TellsItsStoryAndLeavesTheResult) {
  nlohmann::json spec = tiny_.Spec();
  spec["val_set_size"] = 4;
  std::vector<nlohmann::json> events;
  ASSERT_EQ(RunToEnd(Train(spec, "work"), &events), 0) << ReadWholeFile(tiny_.File("work.log"));
  std::vector<std::string> names;
  for (const nlohmann::json& event : events) {
    if (names.empty() || names.back() != event.at("event")) {
      names.push_back(event.at("event"));
    }
  }
  EXPECT_EQ(names.front(), "stage");
  EXPECT_EQ(names.back(), "result");
  EXPECT_EQ(std::count(names.begin(), names.end(), "started"), 1);
  const nlohmann::json& result = events.back();
  EXPECT_LT(result.at("eval_loss").get<double>(), result.at("base_eval_loss").get<double>());
  EXPECT_GT(result.at("peak_memory_bytes").get<std::int64_t>(), 10'000'000);
  for (const char* file :
       {"result/adapter_model.safetensors", "result/adapter_config.json", "result/README.md",
        "result/offshoot.json", "result/training_metrics.jsonl", "reference.safetensors"}) {
    EXPECT_TRUE(fs::exists(tiny_.File("work/") + file)) << file;
  }
}

TEST_F(TrainerProcessTest, KilledAtRandomMoments_EndsWithTheSameBits) {
  nlohmann::json spec = tiny_.Spec();
  spec["num_train_epochs"] = 5;
  spec["save_steps"] = 4;
  ASSERT_EQ(RunToEnd(Train(spec, "whole")), 0);
  const auto seed = static_cast<unsigned>(std::random_device()());
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  int kills = 0;
  while (kills < 6) {
    spec["resume_from"] = NewestCheckpoint("killed");
    TrainerProcess process(Train(spec, "killed"));
    const int events_to_see = 3 + static_cast<int>(random() % 14);
    bool ended = false;
    for (int i = 0; i < events_to_see && !ended; ++i) {
      const std::optional<nlohmann::json> event = process.NextEvent();
      ended = !event || event->at("event") == "result";
      if (!ended) {
        Confirm(process, *event);
      }
    }
    if (ended) {
      break;
    }
    usleep(random() % 3000);  // anywhere between two events, also in the midst of a checkpoint
    process.Signal(SIGKILL);
    process.Wait();
    ++kills;
  }
  spec["resume_from"] = NewestCheckpoint("killed");
  ASSERT_EQ(RunToEnd(Train(spec, "killed")), 0) << ReadWholeFile(tiny_.File("killed.log"));
  EXPECT_TRUE(ResultAdapter("killed") == ResultAdapter("whole")) << kills << " kills";
}

TEST_F(TrainerProcessTest, TwoRanks_GiveTheAdapterOfOne) {
  nlohmann::json spec = tiny_.Spec();
  spec["val_set_size"] = 4;
  spec["max_steps"] = 5;
  spec["per_device_train_batch_size"] = 2;
  spec["gradient_accumulation_steps"] = 2;
  std::vector<nlohmann::json> one_events;
  ASSERT_EQ(RunToEnd(Train(spec, "one"), &one_events), 0);
  spec["gradient_accumulation_steps"] = 1;
  TrainerOptions first = Train(spec, "rank0");
  first.environment = {
      {"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "0"}};
  TrainerProcess rank0(first);
  const nlohmann::json listening = rank0.WaitFor("listening");
  ASSERT_TRUE(listening.is_object()) << ReadWholeFile(tiny_.File("rank0.log"));
  TrainerOptions second = Train(spec, "rank1");
  second.environment = {{"RANK", "1"},
                        {"WORLD_SIZE", "2"},
                        {"MASTER_ADDR", "127.0.0.1"},
                        {"MASTER_PORT", listening.at("port").dump()}};
  TrainerProcess rank1(second);
  nlohmann::json result;
  while (std::optional<nlohmann::json> event = rank0.NextEvent()) {
    Confirm(rank0, *event);
    if (event->at("event") == "result") {
      result = *event;
    }
  }
  rank1.RemainingEvents();
  EXPECT_EQ(rank0.Wait(), 0) << ReadWholeFile(tiny_.File("rank0.log"));
  EXPECT_EQ(rank1.Wait(), 0) << ReadWholeFile(tiny_.File("rank1.log"));
  ASSERT_TRUE(result.is_object());
  EXPECT_NEAR(result.at("eval_loss").get<double>(), one_events.back().at("eval_loss").get<double>(),
              1e-5);
  // Two files of one layout: compare the numbers behind the header.
  const std::string one = ResultAdapter("one");
  const std::string two = ResultAdapter("rank0");
  ASSERT_EQ(one.size(), two.size());
  std::uint64_t header = 0;
  std::memcpy(&header, one.data(), sizeof(header));
  double largest = 0;
  for (std::size_t at = 8 + header; at + 4 <= one.size(); at += 4) {
    float a = 0;
    float b = 0;
    std::memcpy(&a, one.data() + at, 4);
    std::memcpy(&b, two.data() + at, 4);
    largest = std::max(largest, static_cast<double>(std::abs(a - b)));
  }
  EXPECT_LT(largest, 1e-5);
}

TEST_F(TrainerProcessTest, WorkerGone_StopsWithACheckpoint) {
  nlohmann::json spec = tiny_.Spec();
  spec["num_train_epochs"] = 10000;
  spec["save_steps"] = 0;
  TrainerProcess process(Train(spec, "work"));
  ASSERT_TRUE(process.WaitFor("metrics").is_object());
  process.CloseControl();
  EXPECT_EQ(process.Wait(), 3);
  const nlohmann::json stopped = process.RemainingEvents().back();
  EXPECT_EQ(stopped.at("event"), "stopped");
  EXPECT_EQ(stopped.at("path"), NewestCheckpoint("work"));
}

TEST_F(TrainerProcessTest, Terminated_StopsWithACheckpoint) {
  nlohmann::json spec = tiny_.Spec();
  spec["num_train_epochs"] = 10000;
  spec["save_steps"] = 0;
  TrainerProcess process(Train(spec, "work"));
  ASSERT_TRUE(process.WaitFor("metrics").is_object());
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 3);
  EXPECT_FALSE(NewestCheckpoint("work").is_null());
}

TEST_F(TrainerProcessTest, CheckpointNotStored_HoldsTheNextOneBack) {
  nlohmann::json spec = tiny_.Spec();
  spec["num_train_epochs"] = 3;
  spec["save_steps"] = 3;
  TrainerProcess process(Train(spec, "work"));
  EXPECT_EQ(process.WaitFor("checkpoint").at("step"), 3);
  nlohmann::json metrics;
  do {
    metrics = process.WaitFor("metrics");
  } while (metrics.is_object() && metrics.at("step") != 6);
  // Step 6 is due and waits; only a request from here moves it.
  process.Send({{"command", "checkpoint_stored"}, {"step", 3}});
  EXPECT_EQ(process.NextEvent()->at("event"), "checkpoint");
  process.Send({{"command", "stop"}, {"checkpoint", false}});
  const nlohmann::json stopped = process.WaitFor("stopped");
  ASSERT_TRUE(stopped.is_object());
  EXPECT_TRUE(stopped.at("path").is_null());
  EXPECT_EQ(process.Wait(), 3);
}

TEST_F(TrainerProcessTest, FullDisk_IsSaidAndNothingHalfWrittenStays) {
  nlohmann::json spec = tiny_.Spec();
  spec["num_train_epochs"] = 2;
  TrainerOptions options = Train(spec, "work");
  options.file_size_limit = 8000;  // metrics fit, an adapter does not
  EXPECT_THAT(FailureOf(options, "DISK_FULL"), HasSubstr(tiny_.File("work")));
  for (const auto& entry : fs::recursive_directory_iterator(tiny_.File("work"))) {
    EXPECT_FALSE(entry.path().string().ends_with(".tmp")) << entry.path();
  }
}

TEST_F(TrainerProcessTest, BadInput_IsOneSentenceThatNamesIt) {
  nlohmann::json spec = tiny_.Spec();
  spec["base_model"]["path"] = tiny_.File("nowhere");
  EXPECT_THAT(FailureOf(Train(spec, "base"), "BAD_MODEL"), HasSubstr("nowhere"));

  spec = tiny_.Spec();
  spec["datasets"][0]["path"] = tiny_.File("missing.jsonl");
  EXPECT_THAT(FailureOf(Train(spec, "data"), "BAD_DATA"), HasSubstr("missing.jsonl"));

  std::string rows = ReadWholeFile(tiny_.File("rows.jsonl"));
  std::size_t line7 = 0;
  for (int i = 0; i < 6; ++i) {
    line7 = rows.find('\n', line7) + 1;
  }
  spec["datasets"][0]["path"] = tiny_.directory().Write(
      "broken.jsonl", rows.substr(0, line7) + "{\"input_ids\": [1, 2\n" + rows.substr(line7));
  EXPECT_THAT(FailureOf(Train(spec, "json"), "BAD_DATA"), HasSubstr("broken.jsonl line 7"));

  spec["datasets"][0]["path"] = tiny_.directory().Write("empty.jsonl", "");
  EXPECT_THAT(FailureOf(Train(spec, "empty"), "BAD_DATA"), HasSubstr("empty.jsonl"));

  spec["datasets"][0]["path"] = tiny_.directory().Write(
      "masked.jsonl", "{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, -100]}\n");
  FailureOf(Train(spec, "masked"), "BAD_DATA");

  spec = tiny_.Spec();
  spec["lora_target_modules"] = {"wq_proj"};
  EXPECT_THAT(FailureOf(Train(spec, "target"), "BAD_SPEC"), HasSubstr("wq_proj"));

  spec = tiny_.Spec();
  spec["device"] = "cuda:0";
  if (!fs::exists("/dev/nvidiactl")) {
    EXPECT_THAT(FailureOf(Train(spec, "device"), "BAD_SPEC"), HasSubstr("cuda:0"));
  }

  spec = tiny_.Spec();
  spec["resume_from"] = tiny_.File("no-checkpoint");
  EXPECT_THAT(FailureOf(Train(spec, "resume"), "BAD_SPEC"), HasSubstr("no-checkpoint"));

  const std::string weights = ReadWholeFile(tiny_.File("model/model.safetensors"));
  tiny_.directory().Write("model/model.safetensors", weights.substr(0, weights.size() / 2));
  EXPECT_THAT(FailureOf(Train(tiny_.Spec(), "cut"), "BAD_MODEL"), HasSubstr("model.safetensors"));
}

TEST_F(TrainerProcessTest, Score_AddsUpToItsRows) {
  const std::string command = std::string(OFFSHOOT_TRAINER_PROGRAM) +
                              " score --threads 1 --model " + tiny_.File("model") + " --data " +
                              tiny_.File("rows.jsonl") + " --type pretokenized --output " +
                              tiny_.File("scores.jsonl") + " > " + tiny_.File("score.json");
  ASSERT_EQ(std::system(command.c_str()), 0);
  const nlohmann::json total = nlohmann::json::parse(ReadWholeFile(tiny_.File("score.json")));
  EXPECT_EQ(total.at("rows"), 24);
  double loss = 0;
  std::int64_t tokens = 0;
  std::istringstream lines(ReadWholeFile(tiny_.File("scores.jsonl")));
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json row = nlohmann::json::parse(line);
    loss += row.at("loss").get<double>() * row.at("tokens").get<double>();
    tokens += row.at("tokens").get<std::int64_t>();
  }
  EXPECT_EQ(total.at("tokens"), tokens);
  EXPECT_NEAR(total.at("loss").get<double>(), loss / static_cast<double>(tokens), 1e-9);
  EXPECT_NEAR(total.at("perplexity").get<double>(), std::exp(total.at("loss").get<double>()), 1e-9);
}

TEST_F(TrainerProcessTest, Rank_OutOfRangeIsNamed) {
  TrainerOptions options = Train(tiny_.Spec(), "work");
  options.environment = {{"RANK", "2"}, {"WORLD_SIZE", "2"}};
  EXPECT_THAT(FailureOf(options, "BAD_SPEC"), HasSubstr("RANK is 2 and WORLD_SIZE is 2"));
  options.environment = {{"RANK", "one"}};
  EXPECT_THAT(FailureOf(options, "BAD_SPEC"), HasSubstr("RANK is 'one'"));
  options.environment = {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"OFFSHOOT_EXCHANGE", "pigeon"}};
  EXPECT_THAT(FailureOf(options, "BAD_SPEC"), HasSubstr("OFFSHOOT_EXCHANGE is 'pigeon'"));
}

TEST_F(TrainerProcessTest, Preflight_TellsWhatTheJobWouldBe) {
  nlohmann::json spec = tiny_.Spec();
  spec["val_set_size"] = 4;
  TrainerOptions options;
  options.arguments = {"preflight", "--spec", tiny_.WriteSpec("spec.json", spec)};
  options.log_path = tiny_.File("log");
  std::vector<nlohmann::json> events;
  ASSERT_EQ(RunToEnd(options, &events), 0) << ReadWholeFile(options.log_path);
  const nlohmann::json& preflight = events.back();
  EXPECT_EQ(preflight.at("event"), "preflight");
  EXPECT_EQ(preflight.at("rows"), 20);
  EXPECT_EQ(preflight.at("held_out_rows"), 4);
  EXPECT_EQ(preflight.at("total_steps"), 10);
  EXPECT_GT(preflight.at("memory_bytes").get<std::int64_t>(), 0);
  EXPECT_THAT(preflight.at("target_modules").dump(), HasSubstr("q_proj"));
}

}  // namespace
}  // namespace offshoot::trainer
