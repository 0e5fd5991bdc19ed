#include "cli/loader_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <tuple>

namespace offshoot::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kPlain[] =
    R"({"peft_type":"LORA","r":16,"bias":"none","use_dora":false,"use_rslora":false,
        "modules_to_save":null,"rank_pattern":{},"alpha_pattern":{}})";

class LoaderCheckTest : public ::testing::Test {
 protected:
  LoaderCheckTest() {
    derivative_.paths = {"adapter_model.safetensors", "adapter_config.json", "README.md"};
    derivative_.adapter_config = kPlain;
    derivative_.adapter_tensors = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"};
  }
  void AddMerged(const std::string& type) {
    derivative_.paths.push_back("merged/config.json");
    derivative_.paths.push_back("merged/model.safetensors");
    derivative_.merged_config = R"({"model_type":")" + type + "\"}";
  }
  std::map<std::string, LoaderVerdict> Check() const {
    std::map<std::string, LoaderVerdict> verdicts;
    for (const LoaderVerdict& verdict : CheckLoaders(derivative_))
      verdicts[verdict.loader] = verdict;
    return verdicts;
  }
  LoadableDerivative derivative_;
};

TEST_F(LoaderCheckTest, PlainAdapter_IsTakenByAllWhoTakeAdapters) {
  const auto verdicts = Check();
  for (const char* loader : {"PEFT", "transformers", "vLLM", "llama.cpp"}) {
    EXPECT_TRUE(verdicts.at(loader).takes) << loader << ": " << verdicts.at(loader).detail;
  }
  EXPECT_FALSE(verdicts.at("Ollama").takes);
  EXPECT_FALSE(verdicts.at("mlx-lm").takes);
  EXPECT_THAT(verdicts.at("mlx-lm").detail, HasSubstr("formats: [adapter, merged]"));
  EXPECT_EQ(verdicts.at("vLLM").detail, "--enable-lora");
}

TEST_F(LoaderCheckTest, EachFeature_NamesWhoRefusesIt) {
  const std::vector<std::tuple<std::string, std::string, bool, bool>> cases = {
      // adapter_config, word of the reason, vLLM takes, llama.cpp takes
      {R"({"peft_type":"LORA","r":8,"use_dora":true})", "DoRA", false, false},
      {R"({"peft_type":"LORA","r":8,"use_rslora":true})", "rslora", true, false},
      {R"({"peft_type":"LORA","r":8,"bias":"all"})", "LoRA pairs only", false, false},
      {R"({"peft_type":"LORA","r":8,"modules_to_save":["lm_head"]})", "LoRA pairs", false, false},
      {R"({"peft_type":"LORA","r":8,"alpha_pattern":{"q_proj":4}})", "one alpha", false, false},
      {R"({"peft_type":"LORA","r":8,"target_parameters":["mlp.experts.down_proj"]})", "experts",
       false, false},
      {R"({"peft_type":"LORA","r":1024})", "", false, true},
      {R"({"peft_type":"IA3"})", "no LoRA", false, false},
      {"", "no LoRA", false, false},
  };
  for (const auto& [config, reason, vllm, llama] : cases) {
    derivative_.adapter_config = config;
    const auto verdicts = Check();
    EXPECT_EQ(verdicts.at("vLLM").takes, vllm) << config;
    EXPECT_EQ(verdicts.at("llama.cpp").takes, llama) << config;
    if (!llama) {
      EXPECT_THAT(verdicts.at("llama.cpp").detail, HasSubstr(reason)) << config;
    }
  }
}

TEST_F(LoaderCheckTest, RankAboveVllmsDefault_NamesTheFlag) {
  derivative_.adapter_config = R"({"peft_type":"LORA","r":64})";
  EXPECT_EQ(Check().at("vLLM").detail, "--enable-lora --max-lora-rank 64");
}

TEST_F(LoaderCheckTest, MergedModel_HelpsThoseWhoTakeNoAdapter) {
  derivative_.adapter_config = R"({"peft_type":"LORA","r":8,"use_dora":true})";
  AddMerged("qwen3");
  const auto verdicts = Check();
  for (const auto& [loader, verdict] : verdicts) EXPECT_TRUE(verdict.takes) << loader;
  EXPECT_THAT(verdicts.at("vLLM").detail, AllOf(HasSubstr("merged/"), HasSubstr("use_dora")));
  derivative_.merged_config = R"({"model_type":"minimax"})";
  EXPECT_FALSE(Check().at("llama.cpp").takes);
  EXPECT_THAT(Check().at("llama.cpp").detail, HasSubstr("minimax"));
}

TEST_F(LoaderCheckTest, Gguf_IsForLlamaCppAndOllama) {
  derivative_.paths.push_back("gguf/model-Q8_0.gguf");
  EXPECT_THAT(Check().at("llama.cpp").detail, HasSubstr("model-Q8_0.gguf"));
  EXPECT_TRUE(Check().at("Ollama").takes);
}

TEST_F(LoaderCheckTest, NoAdapter_IsSaid) {
  derivative_.paths = {"README.md"};
  for (const auto& [loader, verdict] : Check()) EXPECT_FALSE(verdict.takes) << loader;
}

}  // namespace
}  // namespace offshoot::cli
