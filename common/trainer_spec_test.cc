#include "common/trainer_spec.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/digest.h"
#include "common/job_spec_table.h"

namespace offshoot {
namespace {

JobSpec Small() {
  JobSpec spec;
  spec.base_model = "/m";
  spec.datasets = {{"a.jsonl", "chat"}};
  return spec;
}

TEST(TrainerSpecJson, Smallest_HasEveryKeyWithItsDefault) {
  JobSpec spec = Small();
  TrainerSpecContext context;
  context.job_id = JobId("job-1");
  context.attempt = AttemptNumber{2};
  context.base_model = {"/cache/m", "sha256:aa"};
  context.datasets = {{"/cache/a", "sha256:bb"}};
  context.device = "cpu";
  context.threads = 2;
  context.attempts = {{1, "w", 1, 40}};
  const auto json = nlohmann::json::parse(TrainerSpecJson(spec, context));
  for (const BoundKey& key : BindJobKeys(spec)) {
    std::string pointer = std::string("/") + key.info->key;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    // Where a job waits says nothing to the trainer, and older trainers do not know the others.
    const bool left_out =
        pointer == "/queue" || pointer.starts_with("/sync/") || pointer == "/recompute_granularity";
    EXPECT_NE(json.contains(nlohmann::json::json_pointer(pointer)), left_out) << pointer;
  }
  EXPECT_EQ(json["spec_version"], 1);
  EXPECT_EQ(json["job_id"], "job-1");
  EXPECT_EQ(json["attempt"], 2);
  EXPECT_EQ(json["base_model"]["path"], "/cache/m");
  EXPECT_TRUE(json["base_model"]["id"].is_null());
  EXPECT_EQ(json["datasets"][0]["type"], "chat");
  EXPECT_TRUE(json["init_adapter"].is_null());
  EXPECT_TRUE(json["resume_from"].is_null());
  EXPECT_EQ(json["learning_rate"], 2e-4);
  EXPECT_EQ(json["lora_target_modules"][0], "all-linear");
  EXPECT_EQ(json["publish"]["formats"][0], "adapter");
  EXPECT_EQ(json["lineage"]["attempts"][0]["last_step"], 40);
  EXPECT_EQ(json["lineage"]["spec_digest"], SpecDigest(spec));
}

TEST(TrainerSpecJson, LocalSteps_AreGiven) {
  JobSpec spec = Small();
  spec.sync.local_steps = 20;
  const auto json = nlohmann::json::parse(TrainerSpecJson(spec, {}));
  EXPECT_EQ(json["sync"]["local_steps"], 20);
  EXPECT_EQ(json["sync"]["outer_momentum"], 0.5);
}

TEST(TrainerSpecJson, SelectiveRecomputation_IsGiven) {
  JobSpec spec = Small();
  spec.recompute_granularity = "selective";
  const auto json = nlohmann::json::parse(TrainerSpecJson(spec, {}));
  EXPECT_EQ(json["recompute_granularity"], "selective");
}

TEST(TrainerSpecJson, AdapterAndCheckpoint_AreNamed) {
  TrainerSpecContext context;
  context.init_adapter = ResolvedInput{"/a", "sha256:cc"};
  context.resume_from = "/w/checkpoints/step-00000020";
  const auto json = nlohmann::json::parse(TrainerSpecJson(Small(), context));
  EXPECT_EQ(json["init_adapter"]["path"], "/a");
  EXPECT_EQ(json["resume_from"], "/w/checkpoints/step-00000020");
}

TEST(PreflightKey, OnlyWhatMatters_ChangesIt) {
  JobSpec spec = Small();
  const std::string key = PreflightKey(spec, "b", {"d"}, "");
  spec.learning_rate = 1;
  spec.name = "other";
  spec.labels = {{"a", "b"}};
  EXPECT_EQ(PreflightKey(spec, "b", {"d"}, ""), key);
  EXPECT_NE(PreflightKey(spec, "c", {"d"}, ""), key);
  EXPECT_NE(PreflightKey(spec, "b", {"e"}, ""), key);
  EXPECT_NE(PreflightKey(spec, "b", {"d"}, "f"), key);
  spec.sequence_len = 8;
  EXPECT_NE(PreflightKey(spec, "b", {"d"}, ""), key);
  spec = Small();
  spec.datasets[0].type = "text";
  EXPECT_NE(PreflightKey(spec, "b", {"d"}, ""), key);
  EXPECT_TRUE(IsDigest(key));
}

}  // namespace
}  // namespace offshoot
