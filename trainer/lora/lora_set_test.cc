// The decoder's loading and the adapters, on a tiny model that the test writes itself.
#include "trainer/lora/lora_set.h"

#include <ATen/Context.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "trainer/testing.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class LoraSetTest : public testing::Test {
 protected:
  LoraSetTest() {
    at::manual_seed(1);
    directory_.Write("config.json", R"({"model_type": "llama", "vocab_size": 11, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "tie_word_embeddings": true})");
    const std::string layer = "model.layers.0.";
    tensors_ = {{"model.embed_tokens.weight", at::randn({11, 8})},
                {"model.norm.weight", at::randn({8})},
                {layer + "input_layernorm.weight", at::randn({8})},
                {layer + "post_attention_layernorm.weight", at::randn({8})},
                {layer + "self_attn.q_proj.weight", at::randn({8, 8})},
                {layer + "self_attn.k_proj.weight", at::randn({4, 8})},
                {layer + "self_attn.v_proj.weight", at::randn({4, 8})},
                {layer + "self_attn.o_proj.weight", at::randn({8, 8})},
                {layer + "mlp.gate_proj.weight", at::randn({12, 8})},
                {layer + "mlp.up_proj.weight", at::randn({12, 8})},
                {layer + "mlp.down_proj.weight", at::randn({8, 12})}};
  }

  std::unique_ptr<Decoder> Load(bool load_weights = true) {
    WriteSafetensors(directory_.File("model.safetensors"), tensors_);
    DecoderOptions options;
    options.load_weights = load_weights;
    return Decoder::Load(OpenBaseModel(directory_.path()), options);
  }

  const TemporaryDirectory directory_;
  std::map<std::string, at::Tensor> tensors_;
};

TEST_F(LoraSetTest, DecoderWithBrokenTensors_NamesAllFaultsAtOnce) {
  tensors_.erase("model.norm.weight");
  tensors_["model.layers.0.self_attn.k_proj.weight"] = at::randn({8, 8});
  tensors_["model.layers.7.self_attn.k_proj.weight"] = at::randn({4, 8});
  tensors_["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::randn({2});  // harmless
  const std::string message = MessageOf(Reason::kBadModel, [&] { Load(); });
  EXPECT_THAT(message, HasSubstr("model.norm.weight"));
  EXPECT_THAT(message, HasSubstr("model.layers.0.self_attn.k_proj.weight is [8, 8]"));
  EXPECT_THAT(message, HasSubstr("should be [4, 8]"));
  EXPECT_THAT(message, HasSubstr("model.layers.7.self_attn.k_proj.weight"));
  EXPECT_THAT(message, testing::Not(HasSubstr("inv_freq")));
}

TEST_F(LoraSetTest, TiedHead_IsTheEmbeddingUnlessItsTensorDiffers) {
  const at::Tensor embedding = tensors_["model.embed_tokens.weight"];
  EXPECT_TRUE(Load()->head()->Weight().equal(embedding));
  tensors_["lm_head.weight"] = embedding.clone();
  EXPECT_TRUE(Load()->head()->Weight().equal(embedding));
  tensors_["lm_head.weight"] = embedding.add(1.0);
  EXPECT_TRUE(Load()->head()->Weight().equal(embedding.add(1.0)));
  tensors_.erase("model.embed_tokens.weight");
  EXPECT_TRUE(Load()->head()->Weight().equal(embedding.add(1.0)));
}

TEST_F(LoraSetTest, DecoderWithoutWeights_ListsTheSameModules) {
  const auto with = Load();
  const auto without = Load(/*load_weights=*/false);
  ASSERT_EQ(with->linear_modules().size(), 7U);
  EXPECT_EQ(with->parameter_count(), without->parameter_count());
  for (std::size_t i = 0; i < 7; ++i) {
    EXPECT_EQ(with->linear_modules()[i].path, without->linear_modules()[i].path);
    EXPECT_EQ(without->linear_modules()[i].base, nullptr);
  }
}

TEST_F(LoraSetTest, Created_DrawsAFromTheSeedAndLeavesBZero) {
  const auto decoder = Load();
  LoraConfig config;
  config.r = 4;
  const auto one = LoraSet::Create(*decoder, config, 5);
  const auto same = LoraSet::Create(*decoder, config, 5);
  const auto other = LoraSet::Create(*decoder, config, 6);
  ASSERT_EQ(one->parameters().size(), 14U);
  EXPECT_EQ(one->parameters()[0].name,
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
  for (std::size_t i = 0; i < 14; i += 2) {
    const at::Tensor a = one->parameters()[i].tensor;
    EXPECT_TRUE(a.equal(same->parameters()[i].tensor));
    EXPECT_FALSE(a.equal(other->parameters()[i].tensor));
    EXPECT_LE(a.abs().max().item<double>(), 1.0 / std::sqrt(static_cast<double>(a.size(1))));
    EXPECT_GT(a.abs().max().item<double>(), 0.5 / std::sqrt(static_cast<double>(a.size(1))));
    EXPECT_EQ(one->parameters()[i + 1].tensor.abs().max().item<double>(), 0.0);
    EXPECT_TRUE(a.requires_grad());
  }
}

TEST_F(LoraSetTest, Created_WithNamesOnly_TouchesNothingElse) {
  const auto decoder = Load();
  LoraConfig config;
  config.target_modules = {"v_proj", "q_proj"};
  const auto set = LoraSet::Create(*decoder, config, 0);
  EXPECT_THAT(set->target_module_names(), ElementsAre("q_proj", "v_proj"));
  EXPECT_NE(set->Find(0), nullptr);
  EXPECT_EQ(set->Find(1), nullptr);
  EXPECT_EQ(set->Find(1000), nullptr);
  EXPECT_EQ(set->parameter_count(), 16 * (8 + 8) + 16 * (8 + 4));
}

TEST_F(LoraSetTest, SavedAndLoaded_IsTheSameAndNamesNoPath) {
  const auto decoder = Load();
  LoraConfig config;
  config.r = 3;
  config.alpha = 5;
  config.use_rslora = true;
  const auto set = LoraSet::Create(*decoder, config, 2);
  const TemporaryDirectory out;
  set->Save(out.path(), "org/base", "main");
  EXPECT_THAT(ReadWholeFile(out.File("adapter_config.json")), HasSubstr("org/base"));
  const auto again = LoraSet::Load(*decoder, out.path());
  ASSERT_EQ(again->parameters().size(), set->parameters().size());
  for (std::size_t i = 0; i < set->parameters().size(); ++i) {
    EXPECT_EQ(again->parameters()[i].name, set->parameters()[i].name);
    EXPECT_TRUE(again->parameters()[i].tensor.equal(set->parameters()[i].tensor));
  }
  EXPECT_DOUBLE_EQ(again->Find(0)->scaling, 5.0 / std::sqrt(3.0));
}

TEST_F(LoraSetTest, LoadedAdapterThatDoesNotFit_NamesAllFaultsAtOnce) {
  const auto decoder = Load();
  LoraConfig config;
  config.target_modules = {"q_proj", "v_proj"};
  const TemporaryDirectory out;
  LoraSet::Create(*decoder, config, 2)->Save(out.path(), "", "");
  const std::string prefix = "base_model.model.model.layers.0.";
  std::map<std::string, at::Tensor> tensors = {
      {prefix + "self_attn.q_proj.lora_A.weight", at::randn({16, 9})},
      {prefix + "self_attn.q_proj.lora_B.weight", at::randn({8, 16})},
      {prefix + "self_attn.x_proj.lora_A.weight", at::randn({16, 8})}};
  WriteSafetensors(out.File("adapter_model.safetensors"), tensors);
  const std::string message =
      MessageOf(Reason::kBadModel, [&] { LoraSet::Load(*decoder, out.path()); });
  EXPECT_THAT(message, HasSubstr("q_proj.lora_A.weight [16, 9]"));
  EXPECT_THAT(message, HasSubstr("x_proj.lora_A.weight"));
  EXPECT_THAT(message, HasSubstr("v_proj.lora_A.weight"));
}

}  // namespace
}  // namespace offshoot::trainer
