// The memory model against real processes: what preflight says a job needs, and the most that its
// training had resident (VmHWM), on a random model whose activations are most of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "trainer/random_model.h"
#include "trainer/testing.h"
#include "trainer/tiny_job.h"
#include "trainer/trainer_process.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

constexpr RandomModelSizes kSizes = {.hidden = 256,
                                     .layers = 8,
                                     .intermediate = 1024,
                                     .vocabulary = 512,
                                     .heads = 8,
                                     .key_heads = 4,
                                     .head_width = 32};

struct MeasuredCase {
  const char* name;
  std::int64_t rows;
  std::int64_t row_tokens;
  Json changes;
};

class MemoryMeasuredTest : public ::testing::TestWithParam<MeasuredCase> {
 protected:
  Json Spec(const std::string& model) const {
    const MeasuredCase& point = GetParam();
    const std::string rows = RandomRows(point.rows, point.row_tokens, kSizes.vocabulary);
    Json spec = {
        {"spec_version", 1},
        {"job_id", "job-memory"},
        {"base_model", {{"path", model}}},
        {"datasets", {{{"path", directory_.Write("rows.jsonl", rows)}, {"type", "pretokenized"}}}},
        {"sequence_len", point.row_tokens},
        {"per_device_train_batch_size", point.rows},
        {"max_steps", 1},
        {"save_steps", 0},
        {"threads", 2}};
    spec.update(point.changes);
    if (four_bits_) spec["load_in_4bit"] = true;
    return spec;
  }

  Json Run(const std::string& command, const std::string& event) const {
    TrainerOptions options;
    options.arguments = {command, "--spec", directory_.File("spec.json"), "--work-dir",
                         directory_.File("work")};
    options.log_path = directory_.File("log");
    options.control = false;
    TrainerProcess process(options);
    const Json found = process.WaitFor(event);
    process.RemainingEvents();
    EXPECT_EQ(process.Wait(), 0) << ReadWholeFile(directory_.File("log"));
    return found;
  }

  // No more than 15 % apart. Returns the measured bytes.
  double ExpectPredicted(const std::string& model) const {
    directory_.Write("spec.json", Spec(model).dump());
    const Json preflight = Run("preflight", "preflight");
    const Json result = Run("train", "result");
    if (!preflight.is_object() || !result.is_object()) {
      ADD_FAILURE() << "preflight or training did not end well";
      return 0;
    }
    const double predicted = preflight.at("memory_bytes"), measured = result["peak_memory_bytes"];
    std::printf("%s%s: predicted %.0f MB, measured %.0f MB, %+.1f %%\n", GetParam().name,
                four_bits_ ? " in 4 bits" : "", predicted / 1e6, measured / 1e6,
                100 * (predicted / measured - 1));
    EXPECT_NEAR(predicted / measured, 1, 0.15) << preflight["memory"]["cpu"]["parts"];
    return measured;
  }

  TemporaryDirectory directory_;
  bool four_bits_ = false;
};

TEST_P(MemoryMeasuredTest, Prediction_IsWithinFifteenPercentOfThePeak) {
  const TemporaryDirectory model;
  WriteRandomLlama(model, kSizes);
  ExpectPredicted(model.path());
}

INSTANTIATE_TEST_SUITE_P(
    Random, MemoryMeasuredTest,
    ::testing::Values(
        MeasuredCase{"8x512", 8, 512, Json::object()},
        MeasuredCase{"4x2048", 4, 2048, Json::object()},
        MeasuredCase{"8x1024 recomputing", 8, 1024, {{"gradient_checkpointing", true}}},
        MeasuredCase{"16x2048 recomputing", 16, 2048, {{"gradient_checkpointing", true}}},
        MeasuredCase{"8x1024 recomputing selectively",
                     8,
                     1024,
                     {{"gradient_checkpointing", true}, {"recompute_granularity", "selective"}}},
        MeasuredCase{"4x1024 float32", 4, 1024, {{"dtype", "float32"}}},
        MeasuredCase{"4x512 r=256", 4, 512, {{"lora_r", 256}}},
        MeasuredCase{
            "4x512 r=256 local steps", 4, 512, {{"lora_r", 256}, {"sync", {{"local_steps", 1}}}}},
        MeasuredCase{"8x512 4 bits", 8, 512, {{"load_in_4bit", true}}},
        MeasuredCase{"packed 4x1024",
                     32,
                     128,
                     {{"sample_packing", true},
                      {"sequence_len", 1024},
                      {"per_device_train_batch_size", 4}}}),
    [](const auto& info) { return "Case" + std::to_string(info.index); });

// The model of the quickstart, where OFFSHOOT_DEMO_MODEL names it.
class DemoMemoryTest : public MemoryMeasuredTest {
 protected:
  void SetUp() override {
    const char* model = std::getenv("OFFSHOOT_DEMO_MODEL");
    if (model == nullptr || !std::filesystem::exists(model)) {
      GTEST_SKIP() << "OFFSHOOT_DEMO_MODEL does not name the demo model";
    }
    model_ = model;
  }
  std::string model_;
};

TEST_P(DemoMemoryTest, InFourBits_TakesLessThanInBfloat16_BothAsPredicted) {
  const double plain = ExpectPredicted(model_);
  four_bits_ = true;
  EXPECT_LT(ExpectPredicted(model_), plain);
}

INSTANTIATE_TEST_SUITE_P(Demo, DemoMemoryTest,
                         ::testing::Values(MeasuredCase{"demo 4x128", 4, 128, Json::object()}),
                         [](const auto&) { return "Small"; });

TEST(AutomaticBatch, TwoRunsAndAResumedOne_TrainTheSameBitForBit) {
  TinyJob tiny;
  Json spec = tiny.Spec();
  spec["per_device_train_batch_size"] = "auto";
  spec["gradient_accumulation_steps"] = 2;
  spec["num_train_epochs"] = 4;
  spec["save_total_limit"] = 10;
  const auto run = [&](const std::string& work, const Json& changes) {
    Json mine = spec;
    mine.update(changes);
    TrainerOptions options;
    options.arguments = {"train", "--spec", tiny.WriteSpec(work + ".json", mine), "--work-dir",
                         tiny.File(work)};
    options.log_path = tiny.File(work + ".log");
    options.control = false;
    TrainerProcess process(options);
    const Json batch = process.WaitFor("batch");
    process.RemainingEvents();
    EXPECT_EQ(process.Wait(), 0) << ReadWholeFile(tiny.File(work + ".log"));
    return batch;
  };
  const Json roomy = run("roomy", Json::object());
  EXPECT_EQ(roomy["per_device_train_batch_size"], 16);
  EXPECT_EQ(roomy["gradient_accumulation_steps"], 1);
  EXPECT_EQ(roomy["gradient_checkpointing"], false);
  const Json settings = Json::parse(ReadWholeFile(tiny.File("roomy/result/offshoot.json")));
  EXPECT_THAT(settings.dump(), ::testing::HasSubstr("\"automatic_batch\":true"));
  EXPECT_THAT(settings.dump(), ::testing::HasSubstr("\"per_device_train_batch_size\":16"));
  // With less memory than anything needs the least is taken; a resumed run keeps what was chosen,
  // whatever memory there is now.
  const Json tight = run("tight", {{"device_memory_bytes", 1'000'000}});
  EXPECT_EQ(tight["per_device_train_batch_size"], 1);
  EXPECT_EQ(tight["gradient_accumulation_steps"], 16);
  EXPECT_EQ(tight["gradient_checkpointing"], true);
  const Json resumed =
      run("resumed", {{"resume_from", tiny.File("tight/checkpoints/step-00000003")}});
  EXPECT_EQ(resumed["per_device_train_batch_size"], 1);
  EXPECT_EQ(resumed["gradient_checkpointing"], true);
  EXPECT_EQ(ReadWholeFile(tiny.File("resumed/result/adapter_model.safetensors")),
            ReadWholeFile(tiny.File("tight/result/adapter_model.safetensors")));
}

TEST(Calibrate, Cpu_SaysPositiveSpeeds) {
  const TemporaryDirectory directory;
  const std::string command = std::string(OFFSHOOT_TRAINER_PROGRAM) +
                              " calibrate --threads 1 --out " + directory.File("speed.json");
  ASSERT_EQ(std::system(command.c_str()), 0);
  const Json speed = Json::parse(ReadWholeFile(directory.File("speed.json")));
  EXPECT_GT(speed["tflops"].get<double>(), 0);
  EXPECT_GT(speed["gigabytes_per_second"].get<double>(), 0);
}

}  // namespace
}  // namespace offshoot::trainer
