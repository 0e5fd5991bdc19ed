#include "trainer/lora/peft_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/testing.h"

namespace offshoot::trainer {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

PeftConfig Read(const json& config) {
  const TemporaryDirectory directory;
  directory.Write("adapter_config.json", config.dump());
  return ReadPeftConfig(directory.path());
}

TEST(PeftConfig, WrittenAndRead_IsTheSame) {
  LoraConfig lora;
  lora.r = 7;
  lora.alpha = 12.5;
  lora.dropout = 0.25;
  lora.use_rslora = true;
  lora.rank_pattern = {{"q_proj", 3}};
  lora.alpha_pattern = {{"layers.1.mlp.up_proj", 4}};
  const PeftConfig read =
      Read(MakePeftConfig(lora, {{"q_proj", "up_proj"}, "", {}}, "org/base", "r1"));
  EXPECT_EQ(read.lora.r, 7);
  EXPECT_EQ(read.lora.alpha, 12.5);
  EXPECT_EQ(read.lora.dropout, 0.25);
  EXPECT_TRUE(read.lora.use_rslora);
  EXPECT_EQ(read.lora.rank_pattern, lora.rank_pattern);
  EXPECT_EQ(read.lora.alpha_pattern, lora.alpha_pattern);
  EXPECT_THAT(read.lora.target_modules, ElementsAre("q_proj", "up_proj"));
}

TEST(PeftConfig, Written_HasWhatLoadersWant) {
  const json config = MakePeftConfig({}, {{"q_proj"}, "", {}}, "org/base", "main");
  EXPECT_EQ(config["peft_type"], "LORA");
  EXPECT_EQ(config["task_type"], "CAUSAL_LM");
  EXPECT_EQ(config["base_model_name_or_path"], "org/base");
  EXPECT_EQ(config["revision"], "main");
  EXPECT_EQ(config["r"], 16);
  EXPECT_EQ(config["lora_alpha"].dump(), "32");
  EXPECT_EQ(config["bias"], "none");
  EXPECT_EQ(config["inference_mode"], true);
  EXPECT_TRUE(config["modules_to_save"].is_null());
}

TEST(PeftConfig, RankAndAlphaNotWritten_ArePeftsDefaults) {
  const PeftConfig read = Read({{"peft_type", "LORA"}, {"target_modules", {"q_proj"}}});
  EXPECT_EQ(read.lora.r, 8);
  EXPECT_EQ(read.lora.alpha, 8.0);
}

TEST(PeftConfig, SettingsThatChangeTheMathematics_AreRefusedByName) {
  const std::vector<std::pair<std::string, json>> settings = {{"use_dora", true},
                                                              {"bias", "all"},
                                                              {"modules_to_save", {"lm_head"}},
                                                              {"init_lora_weights", "pissa"},
                                                              {"r", 0},
                                                              {"r", 2.5},
                                                              {"lora_alpha", "large"},
                                                              {"peft_type", "IA3"},
                                                              {"rank_pattern", {{"q_proj", 1e9}}}};
  for (const auto& [key, value] : settings) {
    json config = {{"peft_type", "LORA"}, {"target_modules", {"q_proj"}}};
    config[key] = value;
    EXPECT_THAT(MessageOf(Reason::kBadModel, [&] { Read(config); }), HasSubstr(key)) << value;
  }
}

TEST(PeftConfig, MissingOrBrokenFile_IsNamed) {
  const TemporaryDirectory directory;
  EXPECT_THAT(MessageOf(Reason::kBadModel, [&] { ReadPeftConfig(directory.path()); }),
              HasSubstr("adapter_config.json"));
  directory.Write("adapter_config.json", "{\"r\": ");
  EXPECT_THAT(MessageOf(Reason::kBadModel, [&] { ReadPeftConfig(directory.path()); }),
              HasSubstr("JSON"));
}

TEST(LoraSize, Patterns_MatchTheEndOfThePath) {
  LoraConfig config;
  config.r = 8;
  config.alpha = 16;
  config.rank_pattern = {{"layers.1.mlp.up_proj", 2}, {"q_proj", 4}};
  config.alpha_pattern = {{"v_proj", 3}};
  EXPECT_EQ(SizeOf(config, "model.layers.1.mlp.up_proj").r, 2);
  EXPECT_EQ(SizeOf(config, "model.layers.11.mlp.up_proj").r, 8);
  EXPECT_EQ(SizeOf(config, "model.layers.0.self_attn.q_proj").r, 4);
  EXPECT_EQ(SizeOf(config, "model.layers.0.self_attn.v_proj").alpha, 3.0);
  EXPECT_DOUBLE_EQ(ScalingOf(config, {8, 16}), 2.0);
  config.use_rslora = true;
  EXPECT_DOUBLE_EQ(ScalingOf(config, {4, 16}), 8.0);
}

}  // namespace
}  // namespace offshoot::trainer
