#include "trainer/models/family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "trainer/testing.h"

namespace offshoot::trainer {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json TinyConfig(const std::string& model_type) {
  return {{"model_type", model_type},     {"vocab_size", 64},       {"hidden_size", 32},
          {"intermediate_size", 48},      {"num_hidden_layers", 3}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2},     {"rms_norm_eps", 1e-5},   {"rope_theta", 1000.0},
          {"max_position_embeddings", 64}};
}

std::string Refusal(const json& config) {
  return MessageOf(Reason::kBadModel, [&] { ReadArchSpec(config); });
}

TEST(Families, Table_IsSorted) {
  EXPECT_TRUE(
      std::is_sorted(Families().begin(), Families().end(),
                     [](const Family& a, const Family& b) { return a.model_type < b.model_type; }));
}

TEST(Families, UnknownModelType_IsRefusedWithThoseThatAreKnown) {
  const std::string message = Refusal(TinyConfig("gpt_neox"));
  EXPECT_THAT(message, HasSubstr("`gpt_neox`"));
  EXPECT_THAT(message, HasSubstr("deepseek_v3"));
  EXPECT_THAT(message, HasSubstr("qwen3_moe"));
}

TEST(Families, NoModelType_IsRefused) {
  EXPECT_THAT(Refusal(json{{"vocab_size", 3}}), HasSubstr("no `model_type`"));
}

TEST(Families, FieldsThatChangeTheMathematics_AreRefusedByName) {
  const std::vector<std::pair<std::string, json>> fields = {
      {"hidden_act", "gelu"},
      {"attention_dropout", 0.1},
      {"num_key_value_heads", 3},
      {"num_hidden_layers", 0},
      {"rope_scaling", {{"rope_type", "longrope"}, {"factor", 2.0}}},
      {"rope_scaling", {{"rope_type", "linear"}}},
      {"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}, {"unheard_of", 1.0}}},
      {"partial_rotary_factor", 1.5},
      {"attn_logit_softcapping", 30.0},
      {"vocab_size", "many"},
  };
  for (const auto& [key, value] : fields) {
    json config = TinyConfig("llama");
    config[key] = value;
    EXPECT_THAT(Refusal(config), HasSubstr(key)) << value;
  }
}

TEST(Families, PublishedSwitchesOfOtherArchitectures_AreRefusedByName) {
  const std::vector<std::tuple<std::string, std::string, json>> fields = {
      {"deepseek_v3", "scoring_func", "softmax"},
      {"deepseek_v3", "moe_layer_freq", 2},
      {"deepseek_v3", "num_key_value_heads", 2},
      {"deepseek_v3", "topk_group", 9},
      {"hunyuan_v1_dense", "use_cla", true},
      {"hunyuan_v1_moe", "routed_scaling_factor", 2.0},
      {"minimax", "postnorm", false},
      {"minimax", "rotary_dim", 100},
      {"minimax", "router_jitter_noise", 0.1},
      {"ernie4_5_moe", "moe_use_aux_free", false},
      {"qwen2", "use_mrope", true},
      {"qwen3_moe", "num_experts_per_tok", 1000},
  };
  for (const auto& [model_type, key, value] : fields) {
    json config = TinyConfig(model_type);
    if (model_type == "deepseek_v3") config["num_key_value_heads"] = 4;
    config[key] = value;
    EXPECT_THAT(Refusal(config), HasSubstr(key)) << model_type;
  }
}

TEST(Families, RopeInBothSpellings_GivesTheSameSpec) {
  json older = TinyConfig("llama");
  older["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  json newer = TinyConfig("llama");
  newer.erase("rope_theta");
  newer["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 1000.0}};
  EXPECT_EQ(ReadArchSpec(older).rotaries, ReadArchSpec(newer).rotaries);
  EXPECT_EQ(ReadArchSpec(older).rotaries[0].theta, 1000.0);
}

TEST(Families, RopePerLayerKind_GivesEachLayerItsOwn) {
  json config = TinyConfig("qwen3");
  config["head_dim"] = 8;
  config["use_sliding_window"] = true;
  config["sliding_window"] = 4;
  config["layer_types"] = {"full_attention", "sliding_attention", "full_attention"};
  config["rope_parameters"] = {
      {"full_attention", {{"rope_type", "default"}, {"rope_theta", 1e6}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
  const ArchSpec spec = ReadArchSpec(config);
  ASSERT_EQ(spec.rotaries.size(), 2U);
  std::vector<double> thetas;
  std::vector<std::int64_t> windows;
  for (const LayerSpec& layer : spec.layers) {
    const auto& attention = std::get<SoftmaxAttentionSpec>(layer.attention);
    thetas.push_back(spec.rotaries[static_cast<std::size_t>(attention.rotary)].theta);
    windows.push_back(attention.window);
  }
  EXPECT_THAT(thetas, ElementsAre(1e6, 1e4, 1e6));
  EXPECT_THAT(windows, ElementsAre(0, 4, 0));
}

TEST(Families, Qwen2WindowThatIsSwitchedOff_IsIgnored) {
  json config = TinyConfig("qwen2");
  config["sliding_window"] = 4;
  config["max_window_layers"] = 1;
  for (const LayerSpec& layer : ReadArchSpec(config).layers) {
    EXPECT_EQ(std::get<SoftmaxAttentionSpec>(layer.attention).window, 0);
  }
}

TEST(Families, MinimaxInBothSpellings_GivesTheSameLayers) {
  json older = TinyConfig("minimax_m1");
  older["attn_type_list"] = {0, 0, 1};
  older["layernorm_full_attention_alpha"] = 3.5;
  older["layernorm_linear_attention_beta"] = 0.5;
  json newer = TinyConfig("minimax");
  newer["layer_types"] = {"linear_attention", "linear_attention", "full_attention"};
  newer["full_attn_alpha_factor"] = 3.5;
  newer["linear_attn_beta_factor"] = 0.5;
  const ArchSpec a = ReadArchSpec(older);
  const ArchSpec b = ReadArchSpec(newer);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(a.layers[i].attention.index(), b.layers[i].attention.index());
    EXPECT_EQ(a.layers[i].attention_residual.skip, b.layers[i].attention_residual.skip);
    EXPECT_EQ(a.layers[i].attention_residual.branch, b.layers[i].attention_residual.branch);
  }
  EXPECT_EQ(a.layers[2].attention_residual.skip, 3.5);
}

}  // namespace
}  // namespace offshoot::trainer
