#include "trainer/train_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/testing.h"

namespace offshoot::trainer {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

nlohmann::json Minimal() {
  return {{"spec_version", 1},
          {"base_model", {{"path", "/models/base"}, {"digest", "sha256:aa"}, {"id", nullptr}}},
          {"datasets", {{{"path", "/data/a.jsonl"}, {"type", "chat"}, {"digest", "sha256:bb"}}}}};
}

std::string Refusal(const nlohmann::json& document) {
  return MessageOf(Reason::kBadSpec, [&] { ParseTrainSpec(document); });
}

TEST(TrainSpec, Minimal_HasTheJobFilesDefaults) {
  const TrainSpec spec = ParseTrainSpec(Minimal());
  EXPECT_EQ(spec.base_model.path, "/models/base");
  EXPECT_EQ(spec.base_model.id, "");
  EXPECT_EQ(spec.datasets.at(0).type, "chat");
  EXPECT_EQ(spec.lora.r, 16);
  EXPECT_THAT(spec.lora.target_modules, ElementsAre("all-linear"));
  EXPECT_EQ(spec.lr_scheduler_type, ScheduleKind::kLinear);
  EXPECT_EQ(spec.dtype, at::kBFloat16);
  EXPECT_TRUE(spec.resume_from.empty());
  EXPECT_TRUE(spec.init_adapter.empty());
  EXPECT_FALSE(spec.publish_merged);
  EXPECT_EQ(spec.resolved.at("sequence_len"), 1024);
}

TEST(TrainSpec, Sync_IsEveryStepOrLocalSteps) {
  nlohmann::json document = Minimal();
  EXPECT_EQ(ParseTrainSpec(document).local_steps, 0);
  document["sync"] = "every_step";
  EXPECT_EQ(ParseTrainSpec(document).local_steps, 0);
  document["sync"] = {{"local_steps", 20}, {"outer_momentum", 0.25}};
  const TrainSpec spec = ParseTrainSpec(document);
  EXPECT_EQ(spec.local_steps, 20);
  EXPECT_EQ(spec.outer.learning_rate, 1);
  EXPECT_EQ(spec.outer.momentum, 0.25);
  document["sync"] = {{"local_step", 20}};
  EXPECT_THAT(Refusal(document), HasSubstr("sync.local_step"));
}

TEST(TrainSpec, AllValues_AreTaken) {
  nlohmann::json document = Minimal();
  document.update({{"lora_r", 8},
                   {"lora_alpha", 16},
                   {"lora_target_modules", {"q_proj", "v_proj"}},
                   {"learning_rate", 1e-3},
                   {"lr_scheduler_type", "cosine"},
                   {"dtype", "float32"},
                   {"max_grad_norm", 0},
                   {"init_adapter", {{"path", "/a"}, {"digest", "sha256:cc"}}},
                   {"resume_from", "/ckpt"},
                   {"publish", {{"name", "x"}, {"formats", {"adapter", "merged"}}}},
                   {"lineage", {{"spec_digest", "sha256:dd"}}},
                   {"resources", {{"ranks", 2}}}});
  const TrainSpec spec = ParseTrainSpec(document);
  EXPECT_EQ(spec.lora.r, 8);
  EXPECT_EQ(spec.lora.alpha, 16);
  EXPECT_THAT(spec.lora.target_modules, ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(spec.learning_rate, 1e-3);
  EXPECT_EQ(spec.max_grad_norm, 0);
  EXPECT_EQ(spec.init_adapter, "/a");
  EXPECT_EQ(spec.resume_from, "/ckpt");
  EXPECT_TRUE(spec.publish_merged);
  EXPECT_EQ(spec.lineage.at("spec_digest"), "sha256:dd");
}

TEST(TrainSpec, UnknownKeys_AreAllNamed) {
  nlohmann::json document = Minimal();
  document["learning_rte"] = 1;
  document["zzz"] = 1;
  EXPECT_THAT(Refusal(document), AllOf(HasSubstr("learning_rte"), HasSubstr("zzz")));
  nlohmann::json nested = Minimal();
  nested["base_model"]["paht"] = "x";
  EXPECT_THAT(Refusal(nested), HasSubstr("base_model.paht"));
}

TEST(TrainSpec, WrongValues_NameTheKeyAndTheRange) {
  const std::vector<std::pair<std::string, nlohmann::json>> wrong = {
      {"lora_r", 0},
      {"lora_r", "sixteen"},
      {"learning_rate", -1},
      {"dtype", "int4"},
      {"optimizer", "sgd"},
      {"lr_scheduler_type", "cosin"},
      {"reproducible", 1},
      {"per_device_train_batch_size", 1.5},
      {"lora_target_modules", nlohmann::json::array()},
      {"spec_version", 2},
  };
  for (const auto& [key, value] : wrong) {
    nlohmann::json document = Minimal();
    document[key] = value;
    const std::string name = key == "spec_version" ? "version" : key;
    EXPECT_THAT(Refusal(document), HasSubstr(name)) << key << " " << value;
  }
}

TEST(TrainSpec, MissingFiles_AreAskedFor) {
  nlohmann::json no_data = Minimal();
  no_data["datasets"] = nlohmann::json::array();
  EXPECT_THAT(Refusal(no_data), HasSubstr("datasets"));
  nlohmann::json no_base = Minimal();
  no_base["base_model"].erase("path");
  EXPECT_THAT(Refusal(no_base), HasSubstr("base_model.path"));
  EXPECT_THAT(Refusal(nlohmann::json::array()), HasSubstr("object"));
}

TEST(ReadTrainSpec, NoFileOrNoJson_SaysSo) {
  const TemporaryDirectory directory;
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [&] { ReadTrainSpec(directory.File("none.json")); }),
              HasSubstr("none.json"));
  const std::string broken = directory.Write("broken.json", "{\"a\": ");
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [&] { ReadTrainSpec(broken); }),
              HasSubstr("broken.json"));
}

TEST(TrainingIdentity, OnlyNumbersCount) {
  nlohmann::json elsewhere = Minimal();
  elsewhere["base_model"]["path"] = "/other/place";
  elsewhere["threads"] = 7;
  elsewhere["save_steps"] = 3;
  const nlohmann::json identity = TrainingIdentity(ParseTrainSpec(Minimal()));
  EXPECT_EQ(TrainingIdentity(ParseTrainSpec(elsewhere)), identity);
  nlohmann::json other = Minimal();
  other["learning_rate"] = 1e-5;
  EXPECT_NE(TrainingIdentity(ParseTrainSpec(other)), identity);
}

}  // namespace
}  // namespace offshoot::trainer
