#include "trainer/weights/gguf.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "trainer/error.h"
#include "trainer/weights/gguf_architectures.h"
#include "trainer/weights/safetensors.h"
#include "trainer/weights/tensor_source.h"
#include "trainer/weights/test_files.h"

namespace offshoot::trainer {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kTestData = "trainer/weights/testdata/";

std::string GgufComplaint(const std::string& bytes) {
  try {
    ParseGguf(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), "x.gguf");
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadModel);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("x.gguf: "), testing::EndsWith(".")));
    return error.what();
  }
  return "";
}

GgufBuilder Good() {
  GgufBuilder builder;
  builder.String("general.architecture", "llama").Uint32("n", 3);
  builder.Tensor("a", {4, 2}, 0, 0);
  return builder;
}

TEST(Gguf, GoodFile_IsRead) {
  const std::string bytes = Good().Build(std::string(32, '\0'));
  const GgufLayout layout =
      ParseGguf(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size(), "x");
  EXPECT_EQ(layout.metadata["general.architecture"], "llama");
  EXPECT_EQ(layout.metadata["n"], 3);
  ASSERT_EQ(layout.tensors.size(), 1u);
  EXPECT_THAT(layout.tensors[0].shape, ElementsAre(2, 4));
  EXPECT_EQ(layout.tensors[0].begin, bytes.size() - 32);
}

TEST(Gguf, EveryTruncation_Refused) {
  const std::string bytes = Good().Build(std::string(32, '\0'));
  ASSERT_EQ(GgufComplaint(bytes), "");
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_NE(GgufComplaint(bytes.substr(0, size)), "") << "cut to " << size << " bytes";
  }
}

TEST(Gguf, OtherFile_Refused) {
  EXPECT_THAT(GgufComplaint(std::string(100, 'x')), HasSubstr("is no GGUF file"));
}

TEST(Gguf, OtherVersionOrByteOrder_Refused) {
  EXPECT_THAT(GgufComplaint(Good().Build(std::string(32, '\0'), 1)), HasSubstr("of version 1"));
  EXPECT_THAT(GgufComplaint(Good().Build(std::string(32, '\0'), 3u << 24)),
              HasSubstr("big-endian"));
}

TEST(Gguf, AbsurdCounts_Refused) {
  const std::string zeros(64, '\0');
  const auto head = [&](std::uint64_t tensors, std::uint64_t keys) {
    return "GGUF" + Bytes<std::uint32_t>(3) + Bytes(tensors) + Bytes(keys) + zeros;
  };
  EXPECT_THAT(GgufComplaint(head(1ull << 60, 0)), HasSubstr("tensors, which is absurd"));
  EXPECT_THAT(GgufComplaint(head(0, 1ull << 60)), HasSubstr("metadata keys, which is absurd"));
  EXPECT_THAT(
      GgufComplaint(GgufBuilder().Key("k", 8, Bytes<std::uint64_t>(1ull << 50)).Build(zeros)),
      HasSubstr("'k' claims 1125899906842624 bytes"));
  EXPECT_THAT(
      GgufComplaint(GgufBuilder()
                        .Key("k", 9, Bytes<std::uint32_t>(0) + Bytes<std::uint64_t>(1ull << 50))
                        .Build(zeros)),
      HasSubstr("array 'k' claims"));
}

TEST(Gguf, DeeplyNestedArray_Refused) {
  std::string value;
  for (int i = 0; i < 1000; ++i) value += Bytes<std::uint32_t>(9) + Bytes<std::uint64_t>(1);
  EXPECT_THAT(GgufComplaint(GgufBuilder().Key("k", 9, value).Build("")), HasSubstr("too deeply"));
}

TEST(Gguf, UnknownTypes_Refused) {
  EXPECT_THAT(GgufComplaint(GgufBuilder().Key("k", 77, "").Build(std::string(64, '\0'))),
              HasSubstr("unknown type 77"));
  EXPECT_THAT(GgufComplaint(GgufBuilder().Tensor("a", {4}, 999, 0).Build(std::string(64, '\0'))),
              HasSubstr("tensor 'a' has the unknown type 999"));
}

TEST(Gguf, Duplicates_Refused) {
  EXPECT_THAT(GgufComplaint(Good().Uint32("n", 4).Build(std::string(32, '\0'))),
              HasSubstr("key 'n' occurs twice"));
  EXPECT_THAT(GgufComplaint(Good().Tensor("a", {4, 2}, 0, 32).Build(std::string(64, '\0'))),
              HasSubstr("tensor 'a' occurs twice"));
}

TEST(Gguf, BadPlaces_Refused) {
  const std::string data(64, '\0');
  EXPECT_THAT(GgufComplaint(Good().Tensor("b", {4}, 0, 0).Build(data)), HasSubstr("overlap"));
  EXPECT_THAT(GgufComplaint(Good().Tensor("b", {4}, 0, 33).Build(data)),
              HasSubstr("not aligned to 32"));
  EXPECT_THAT(GgufComplaint(Good().Tensor("b", {4}, 0, 64).Build(data)), HasSubstr("is cut short"));
  EXPECT_THAT(GgufComplaint(Good().Tensor("b", {4}, 0, ~0ull).Build(data)), HasSubstr("outside"));
}

TEST(Gguf, BadShapes_Refused) {
  const std::string data(64, '\0');
  EXPECT_THAT(GgufComplaint(GgufBuilder().Tensor("a", {0}, 0, 0).Build(data)), HasSubstr("absurd"));
  EXPECT_THAT(GgufComplaint(GgufBuilder().Tensor("a", {1ull << 40, 1ull << 40}, 0, 0).Build(data)),
              HasSubstr("absurd"));
  EXPECT_THAT(GgufComplaint(GgufBuilder().Tensor("a", {1, 1, 1, 1, 1}, 0, 0).Build(data)),
              HasSubstr("5 dimensions"));
  EXPECT_THAT(GgufComplaint(GgufBuilder().Tensor("a", {33}, 2, 0).Build(data)),
              HasSubstr("rows of 33 elements, which blocks of Q4_0 do not divide"));
}

TEST(Gguf, BadAlignment_Refused) {
  for (const std::uint32_t alignment : {0u, 3u, 1u << 30}) {
    EXPECT_THAT(GgufComplaint(GgufBuilder().Uint32("general.alignment", alignment).Build("")),
                HasSubstr("general.alignment"));
  }
}

TEST(GgmlTypes, EveryReadableType_EqualsTheGgufPackage) {
  const auto file = SafetensorsFile::Open(kTestData + "ggml_blocks.safetensors");
  int seen = 0;
  for (const TensorInfo& info : file->tensors()) {
    if (!info.name.ends_with(".blocks")) continue;
    const std::string name = info.name.substr(0, info.name.size() - 7);
    const GgmlType* type = FindGgmlType(name.c_str());
    ASSERT_NE(type, nullptr) << name;
    ASSERT_NE(type->dequantise, nullptr) << name;
    const at::Tensor blocks = file->Get(info.name);
    const at::Tensor wanted = file->Get(name + ".values");
    const std::int64_t count = blocks.numel() / type->block_bytes;
    ASSERT_EQ(count * type->block_elements, wanted.numel()) << name;
    std::vector<float> got(static_cast<std::size_t>(wanted.numel()));
    type->dequantise(blocks.const_data_ptr<std::uint8_t>(), count, got.data());
    for (std::int64_t i = 0; i < wanted.numel(); ++i) {
      ASSERT_EQ(got[static_cast<std::size_t>(i)], wanted.const_data_ptr<float>()[i])
          << name << " element " << i;
    }
    ++seen;
  }
  EXPECT_EQ(seen, 26);
}

TEST(GgmlTypes, EveryWritableType_EqualsTheGgufPackage) {
  const auto file = SafetensorsFile::Open(kTestData + "ggml_blocks.safetensors");
  const at::Tensor floats = file->Get("quantise.floats");
  for (const char* name : {"F16", "BF16", "Q8_0"}) {
    const GgmlType* type = FindGgmlType(name);
    const at::Tensor wanted = file->Get(std::string("quantise.") + name);
    const std::int64_t blocks = floats.numel() / type->block_elements;
    ASSERT_EQ(blocks * type->block_bytes, wanted.numel()) << name;
    std::vector<std::uint8_t> got(static_cast<std::size_t>(wanted.numel()));
    type->quantise(floats.const_data_ptr<float>(), blocks, got.data());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i], wanted.const_data_ptr<std::uint8_t>()[i]) << name << " byte " << i;
    }
  }
}

TEST(GgmlTypes, PackBfloat16_EqualsLibTorch) {
  const std::vector<float> values = {
      0.0f,          -0.0f,       1.0f,
      1.00390625f,    // halfway, to even: down
      1.01171875f,    // halfway, to even: up
      3.4028235e38f,  // rounds to infinity
      1e-40f,        -2.7182817f, std::numeric_limits<float>::infinity()};
  std::vector<std::uint16_t> packed(values.size());
  PackBfloat16(values.data(), static_cast<std::int64_t>(values.size()), packed.data());
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(packed[i], c10::BFloat16(values[i]).x) << values[i];
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  PackBfloat16(&nan, 1, packed.data());
  EXPECT_TRUE(std::isnan(static_cast<float>(c10::BFloat16(packed[0], c10::BFloat16::from_bits()))));
}

class TinyModel : public testing::TestWithParam<const char*> {};

// What transformers' from_pretrained(gguf_file=...) or the gguf package has of the same file.
TEST_P(TinyModel, Tensors_EqualTransformers) {
  const std::string stem = kTestData + "tiny_" + GetParam();
  const BaseModelFiles model = OpenBaseModel(stem + ".gguf");
  EXPECT_TRUE(model.is_gguf);
  const auto wanted = SafetensorsFile::Open(stem + ".safetensors");
  ASSERT_EQ(model.tensors->List().size(), wanted->tensors().size());
  for (const TensorInfo& info : wanted->tensors()) {
    const TensorInfo* found = model.tensors->Find(info.name);
    ASSERT_NE(found, nullptr) << info.name;
    EXPECT_EQ(found->shape, info.shape) << info.name;
    const at::Tensor expected = wanted->Get(info.name);
    EXPECT_TRUE(at::equal(model.tensors->Load(info.name, at::kFloat), expected)) << info.name;
    EXPECT_TRUE(
        at::equal(model.tensors->Load(info.name, at::kBFloat16), expected.to(at::kBFloat16)))
        << info.name;
    EXPECT_TRUE(at::equal(model.tensors->Load(info.name, at::kHalf), expected.to(at::kHalf)))
        << info.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, TinyModel,
                         testing::Values("llama", "qwen2", "qwen3", "qwen3moe"),
                         [](const auto& info) { return std::string(info.param); });

TEST(GgufConfig, Llama3_MadeFromMetadataAndFrequencies) {
  const BaseModelFiles model = OpenBaseModel(kTestData + "tiny_llama.gguf");
  const nlohmann::json wanted = nlohmann::json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06, "rope_theta": 500000.0, "vocab_size": 48, "tie_word_embeddings": true,
    "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})");
  EXPECT_EQ(model.config, wanted);
  EXPECT_EQ(model.generation_config,
            nlohmann::json::parse(R"({"bos_token_id":1,"eos_token_id":2})"));
  EXPECT_EQ(model.gguf_metadata["tokenizer.ggml.model"], "gpt2");
}

TEST(GgufConfig, Qwen2_UntiedHeadIsSeen) {
  const BaseModelFiles model = OpenBaseModel(kTestData + "tiny_qwen2.gguf");
  EXPECT_EQ(model.config["tie_word_embeddings"], false);
  EXPECT_EQ(model.config["model_type"], "qwen2");
  EXPECT_NE(model.tensors->Find("lm_head.weight"), nullptr);
  EXPECT_NE(model.tensors->Find("model.layers.0.self_attn.q_proj.bias"), nullptr);
}

TEST(GgufConfig, Qwen3_HeadWidthFromKeyLength) {
  EXPECT_EQ(OpenBaseModel(kTestData + "tiny_qwen3.gguf").config["head_dim"], 128);
}

// A llama file with everything but what a test adds or changes.
class GgufModelTest : public testing::Test {
 protected:
  GgufModelTest() {
    builder_.Uint32("llama.embedding_length", 8)
        .Uint32("llama.attention.head_count", 2)
        .Uint32("llama.block_count", 1)
        .Uint32("llama.feed_forward_length", 8)
        .Uint32("llama.context_length", 64)
        .Float32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
        .Tensor("token_embd.weight", {8, 4}, 0, 0);
  }
  std::string ComplaintOfOpening(const std::string& data) {
    WriteBytes(directory_.File("model.gguf"), builder_.Build(data));
    try {
      OpenBaseModel(directory_.File("model.gguf"));
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("model.gguf: "));
      return error.what();
    }
    return "";
  }
  TemporaryDirectory directory_;
  GgufBuilder builder_;
};

TEST_F(GgufModelTest, Plain_Opens) {
  builder_.String("general.architecture", "llama");
  EXPECT_EQ(ComplaintOfOpening(std::string(128, '\0')), "");
}

TEST_F(GgufModelTest, UnknownArchitecture_NamedWithTheKnown) {
  builder_.String("general.architecture", "rwkv6");
  EXPECT_THAT(ComplaintOfOpening(std::string(128, '\0')),
              AllOf(HasSubstr("'rwkv6'"), HasSubstr("llama, qwen2, qwen3")));
}

TEST_F(GgufModelTest, UnknownTensor_Named) {
  builder_.String("general.architecture", "llama").Tensor("blk.0.ssm_a.weight", {8}, 0, 128);
  EXPECT_THAT(ComplaintOfOpening(std::string(160, '\0')), HasSubstr("'blk.0.ssm_a.weight'"));
}

TEST_F(GgufModelTest, UnreadableType_NamedWithTheReadable) {
  builder_.String("general.architecture", "llama").Tensor("output_norm.weight", {256}, 15, 128);
  EXPECT_THAT(ComplaintOfOpening(std::string(448, '\0')),
              AllOf(HasSubstr("the type Q8_K"), HasSubstr("Q4_0")));
}

TEST_F(GgufModelTest, ForeignFrequencies_Refused) {
  builder_.String("general.architecture", "llama").Tensor("rope_freqs.weight", {2}, 0, 128);
  EXPECT_THAT(ComplaintOfOpening(std::string(128, '\0') + Bytes(3.0f) + Bytes(2.0f)),
              HasSubstr("rope_freqs.weight is not the Llama 3 scaling"));
}

TEST_F(GgufModelTest, UnknownRopeScaling_Refused) {
  builder_.String("general.architecture", "llama").String("llama.rope.scaling.type", "longrope");
  EXPECT_THAT(ComplaintOfOpening(std::string(128, '\0')), HasSubstr("rope scaling \"longrope\""));
}

TEST_F(GgufModelTest, Experts_Refused) {
  builder_.String("general.architecture", "llama").Uint32("llama.expert_count", 8);
  EXPECT_THAT(ComplaintOfOpening(std::string(128, '\0')), HasSubstr("8 experts"));
}

TEST_F(GgufModelTest, ImplausibleKey_Named) {
  builder_.String("general.architecture", "llama").Uint32("llama.attention.head_count_kv", 0);
  EXPECT_THAT(ComplaintOfOpening(std::string(128, '\0')),
              HasSubstr("'llama.attention.head_count_kv' is 0"));
}

TEST_F(GgufModelTest, SplitFile_Refused) {
  builder_.String("general.architecture", "llama").Uint32("split.count", 3);
  EXPECT_THAT(ComplaintOfOpening(std::string(128, '\0')), HasSubstr("one part of a split"));
}

TEST_F(GgufModelTest, QueryRowsThatAreNoHeads_Refused) {
  builder_.String("general.architecture", "llama").Tensor("blk.0.attn_q.weight", {8, 6}, 0, 128);
  EXPECT_THAT(ComplaintOfOpening(std::string(320, '\0')),
              HasSubstr("does not divide into 2 heads"));
}

// DeepSeek-V3's keys, for two heads of 3 + 2 wide keys, 1 wide values and a latent of rank 2.
GgufBuilder Deepseek(bool split) {
  GgufBuilder builder;
  builder.String("general.architecture", "deepseek2")
      .Uint32("deepseek2.embedding_length", 8)
      .Uint32("deepseek2.attention.head_count", 2)
      .Uint32("deepseek2.attention.head_count_kv", split ? 1 : 2)
      .Uint32("deepseek2.block_count", 2)
      .Uint32("deepseek2.feed_forward_length", 8)
      .Uint32("deepseek2.context_length", 64)
      .Float32("deepseek2.attention.layer_norm_rms_epsilon", 1e-6f)
      .Uint32("deepseek2.rope.dimension_count", 2)
      .Uint32("deepseek2.attention.kv_lora_rank", 2)
      .Uint32("deepseek2.attention.key_length", split ? 4 : 5)
      .Uint32("deepseek2.attention.value_length", split ? 2 : 1)
      .Uint32("deepseek2.expert_count", 4)
      .Uint32("deepseek2.expert_used_count", 2)
      .Uint32("deepseek2.expert_shared_count", 1)
      .Uint32("deepseek2.expert_feed_forward_length", 4)
      .Uint32("deepseek2.leading_dense_block_count", 1)
      .Float32("deepseek2.expert_weights_scale", 2.5f)
      .Key("deepseek2.expert_weights_norm", 7, Bytes<std::uint8_t>(1));
  if (split) {
    builder.Uint32("deepseek2.attention.key_length_mla", 5)
        .Uint32("deepseek2.attention.value_length_mla", 1);
  }
  return builder.Tensor("token_embd.weight", {8, 4}, 0, 0);
}

constexpr std::uint32_t kSigmoidGating = 2, kSoftmaxGating = 1;

TEST(GgufDeepseek, KeysAndValuesApart_AreOneMatrix) {
  const TemporaryDirectory directory;
  const GgufBuilder builder = Deepseek(/*split=*/true)
                                  .Uint32("deepseek2.expert_gating_func", kSigmoidGating)
                                  .String("deepseek2.rope.scaling.type", "yarn")
                                  .Float32("deepseek2.rope.scaling.factor", 40.0f)
                                  .Uint32("deepseek2.rope.scaling.original_context_length", 32)
                                  .Float32("deepseek2.rope.scaling.yarn_log_multiplier", 0.0707f)
                                  .Uint32("deepseek2.expert_group_count", 2)
                                  .Uint32("deepseek2.expert_group_used_count", 1)
                                  .Tensor("blk.0.attn_k_b.weight", {3, 2, 2}, 0, 128)
                                  .Tensor("blk.0.attn_v_b.weight", {2, 1, 2}, 0, 192);
  std::string data(128, '\0');
  for (int i = 0; i < 12; ++i) data += Bytes(static_cast<float>(i));
  data.resize(192, '\0');
  for (int i = 0; i < 4; ++i) data += Bytes(static_cast<float>(100 + i));
  WriteBytes(directory.File("x.gguf"), builder.Build(data));
  const BaseModelFiles model = OpenBaseModel(directory.File("x.gguf"));
  // Each head: its three keys, which the file has as columns, then its value.
  const at::Tensor wanted = at::tensor({0, 3, 1, 4, 2, 5, 100, 101, 6, 9, 7, 10, 8, 11, 102, 103})
                                .to(at::kFloat)
                                .reshape({8, 2});
  const std::string name = "model.layers.0.self_attn.kv_b_proj.weight";
  ASSERT_NE(model.tensors->Find(name), nullptr);
  EXPECT_THAT(model.tensors->Find(name)->shape, ElementsAre(8, 2));
  EXPECT_TRUE(at::equal(model.tensors->Load(name, at::kFloat), wanted));
  EXPECT_TRUE(at::equal(model.tensors->Load(name, at::kBFloat16), wanted.to(at::kBFloat16)));
  const nlohmann::json config = nlohmann::json::parse(R"({
    "model_type": "deepseek_v3", "num_attention_heads": 2, "num_key_value_heads": 2,
    "q_lora_rank": null, "kv_lora_rank": 2, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2,
    "v_head_dim": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 4, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
    "norm_topk_prob": true, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "rope_scaling": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707,
      "original_max_position_embeddings": 32}})");
  for (const auto& [key, value] : config.items()) EXPECT_EQ(model.config[key], value) << key;
}

TEST(GgufDeepseek, FileFromBeforeTheSplit_IsRead) {
  const TemporaryDirectory directory;
  const GgufBuilder builder = Deepseek(/*split=*/false)
                                  .Uint32("deepseek2.expert_gating_func", kSigmoidGating)
                                  .Tensor("blk.0.attn_kv_b.weight", {2, 8}, 0, 128);
  WriteBytes(directory.File("x.gguf"), builder.Build(std::string(192, '\0')));
  const BaseModelFiles model = OpenBaseModel(directory.File("x.gguf"));
  EXPECT_EQ(model.config["qk_nope_head_dim"], 3);
  EXPECT_EQ(model.config["v_head_dim"], 1);
  EXPECT_EQ(model.config["num_key_value_heads"], 2);
  EXPECT_EQ(model.config["n_group"], 1);
  EXPECT_NE(model.tensors->Find("model.layers.0.self_attn.kv_b_proj.weight"), nullptr);
}

TEST(GgufDeepseek, WhatIsNotV3_Refused) {
  const TemporaryDirectory directory;
  const auto complaint = [&](const GgufBuilder& builder) {
    WriteBytes(directory.File("x.gguf"), builder.Build(std::string(256, '\0')));
    return MessageOf(Reason::kBadModel, [&] { OpenBaseModel(directory.File("x.gguf")); });
  };
  EXPECT_THAT(complaint(Deepseek(true)), HasSubstr("do not score by sigmoid"));
  EXPECT_THAT(complaint(Deepseek(true).Uint32("deepseek2.expert_gating_func", kSoftmaxGating)),
              HasSubstr("do not score by sigmoid"));
  const GgufBuilder good = Deepseek(true).Uint32("deepseek2.expert_gating_func", kSigmoidGating);
  GgufBuilder scaled = good;
  scaled.String("deepseek2.rope.scaling.type", "yarn")
      .Float32("deepseek2.rope.scaling.factor", 40.0f)
      .Uint32("deepseek2.rope.scaling.original_context_length", 32);
  EXPECT_THAT(complaint(scaled), HasSubstr("yarn_log_multiplier"));
  GgufBuilder halved = good;
  halved.Tensor("blk.0.attn_k_b.weight", {3, 2, 2}, 0, 128);
  EXPECT_THAT(complaint(halved), HasSubstr("does not go together with 'blk.0.attn_v_b.weight'"));
}

TEST(GgufNames, HuggingFaceName_AndBack) {
  const GgufArchitecture& qwen3 =
      FindGgufArchitecture({{"general.architecture", "qwen3"}}, "x.gguf");
  const std::string name = "model.layers.17.self_attn.q_norm.weight";
  EXPECT_EQ(HuggingFaceName(qwen3, "blk.17.attn_q_norm.weight"), name);
  EXPECT_EQ(GgufPlaceOf(qwen3, name), (GgufPlace{"blk.17.attn_q_norm.weight"}));
  EXPECT_EQ(HuggingFaceName(qwen3, "blk.x.attn_q.weight"), std::nullopt);
  EXPECT_EQ(HuggingFaceName(qwen3, "blk..attn_q.weight"), std::nullopt);
  EXPECT_EQ(HuggingFaceName(qwen3, "blk.1.attn_q.scale"), std::nullopt);
}

TEST(GgufNames, Experts_StackedInOneTensor) {
  const GgufArchitecture& ernie =
      FindGgufArchitecture({{"general.architecture", "ernie4_5-moe"}}, "x.gguf");
  const auto stack = HuggingFaceName(ernie, "blk.3.ffn_up_exps.weight");
  ASSERT_TRUE(stack);
  const std::string name = "model.layers.3.mlp.experts.11.up_proj.weight";
  EXPECT_EQ(ExpertName(*stack, 11), name);
  EXPECT_EQ(GgufPlaceOf(ernie, name), (GgufPlace{"blk.3.ffn_up_exps.weight", 11}));
  const std::string correction = "model.layers.3.mlp.moe_statics.e_score_correction_bias";
  EXPECT_EQ(HuggingFaceName(ernie, "blk.3.exp_probs_b.bias"), correction);
  EXPECT_EQ(GgufPlaceOf(ernie, correction), (GgufPlace{"blk.3.exp_probs_b.bias"}));
  // llama.cpp's graph would leave these out.
  EXPECT_EQ(GgufPlaceOf(ernie, "model.layers.3.self_attn.q_proj.bias"), std::nullopt);
}

}  // namespace
}  // namespace offshoot::trainer
