#include "trainer/checkpoint.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/testing.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

CheckpointState State(std::int64_t step) {
  CheckpointState state;
  state.step = step;
  state.cursor = {.epoch = 1, .step_in_epoch = 3};
  state.tokens = 1234;
  state.data_digest = "sha256:dd";
  state.identity = {{"learning_rate", 1e-4}, {"lora_r", 8}};
  state.environment = TrainingEnvironment(2, 1, "cpu");
  return state;
}

OptimizerTensors OptimizerOf() {
  return {.first_moments = at::full({6}, 1.5F),
          .second_moments = at::full({6}, 2.5F),
          .outer_momentum = at::full({6}, 3.5F)};
}

std::string Save(const TemporaryDirectory& directory, std::int64_t step) {
  const std::string metrics = directory.Write("metrics.jsonl", "{\"step\":1}\n");
  return WriteCheckpoint(
      directory.File("checkpoints"), State(step),
      [](const std::string& path) {
        WriteSafetensors(path + "/adapter_model.safetensors", {{"a", at::full({2, 3}, 0.5F)}});
      },
      OptimizerOf(), metrics);
}

TEST(Checkpoint, WrittenAndRead_IsTheSame) {
  const TemporaryDirectory directory;
  const std::string path = Save(directory, 20);
  EXPECT_EQ(fs::path(path).filename(), "step-00000020");
  const Checkpoint read = ReadCheckpoint(path);
  EXPECT_EQ(read.state.step, 20);
  EXPECT_EQ(read.state.cursor, (DataCursor{.epoch = 1, .step_in_epoch = 3}));
  EXPECT_EQ(read.state.tokens, 1234);
  EXPECT_EQ(read.state.identity, State(20).identity);
  EXPECT_TRUE(at::equal(read.adapter.at("a"), at::full({2, 3}, 0.5F)));
  EXPECT_TRUE(at::equal(read.optimizer.first_moments, at::full({6}, 1.5F)));
  EXPECT_TRUE(at::equal(read.optimizer.second_moments, at::full({6}, 2.5F)));
  EXPECT_TRUE(at::equal(read.optimizer.outer_momentum, at::full({6}, 3.5F)));
  EXPECT_EQ(ReadWholeFile(read.metrics_path), "{\"step\":1}\n");
  const nlohmann::json manifest = nlohmann::json::parse(ReadWholeFile(path + "/manifest.json"));
  EXPECT_EQ(manifest.at("step"), 20);
  EXPECT_EQ(manifest.at("files").size(), 4U);
}

TEST(Checkpoint, AnyFileChangedCutOrMissing_IsRefusedByName) {
  for (const char* name : {"adapter_model.safetensors", "optimizer.safetensors", "state.json",
                           "training_metrics.jsonl", "manifest.json"}) {
    const TemporaryDirectory directory;
    const std::string path = Save(directory, 20);
    const std::string file = path + "/" + name;
    const auto refusal = [&] { return MessageOf(Reason::kBadSpec, [&] { ReadCheckpoint(path); }); };
    const std::string text = ReadWholeFile(file);
    std::string changed = text;
    changed[changed.size() / 2] ^= 1;
    directory.Write("checkpoints/step-00000020/" + std::string(name), changed);
    if (std::string(name) != "manifest.json") {
      EXPECT_THAT(refusal(), HasSubstr(name));
    }
    directory.Write("checkpoints/step-00000020/" + std::string(name),
                    text.substr(0, text.size() / 2));
    EXPECT_THAT(refusal(), AllOf(HasSubstr(name), HasSubstr("step-00000020")));
    fs::remove(file);
    EXPECT_THAT(refusal(), HasSubstr(std::string(name) + " is missing"));
  }
}

TEST(Checkpoint, FailureWhileWriting_LeavesNothing) {
  const TemporaryDirectory directory;
  EXPECT_THROW(WriteCheckpoint(
                   directory.File("checkpoints"), State(5),
                   [](const std::string&) { throw Error(Reason::kDiskFull, "the disk is full."); },
                   OptimizerOf(), ""),
               Error);
  EXPECT_TRUE(fs::is_empty(directory.File("checkpoints")));
}

TEST(CheckResumable, Differences_AreNamed) {
  const CheckpointState saved = State(20);
  CheckpointState current = saved;
  CheckResumable("ckpt", saved, current, true);
  current.identity["lora_r"] = 16;
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [&] { CheckResumable("ckpt", saved, current, false); }),
              HasSubstr("lora_r 16 instead of 8"));
  current = saved;
  current.environment["threads"] = 4;
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [&] { CheckResumable("ckpt", saved, current, true); }),
              HasSubstr("threads 4 instead of 2"));
  CheckResumable("ckpt", saved, current, /*reproducible=*/false);
  current = saved;
  current.data_digest = "sha256:other";
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [&] { CheckResumable("ckpt", saved, current, false); }),
              HasSubstr("other data"));
}

TEST(Checkpoints, PrunedAndStale_OnlyTheRightOnesGo) {
  const TemporaryDirectory directory;
  const std::string root = directory.File("checkpoints");
  for (const int step : {10, 20, 30, 40}) {
    Save(directory, step);
  }
  fs::create_directory(root + "/step-00000050.tmp");
  PruneCheckpoints(root, 0);
  EXPECT_TRUE(fs::exists(root + "/step-00000010"));
  PruneCheckpoints(root, 3);
  EXPECT_FALSE(fs::exists(root + "/step-00000010"));
  EXPECT_TRUE(fs::exists(root + "/step-00000020"));
  RemoveStaleCheckpoints(root, 30);
  EXPECT_TRUE(fs::exists(root + "/step-00000030"));
  EXPECT_FALSE(fs::exists(root + "/step-00000040"));
  EXPECT_FALSE(fs::exists(root + "/step-00000050.tmp"));
  ReadCheckpoint(root + "/step-00000030");
}

}  // namespace
}  // namespace offshoot::trainer
