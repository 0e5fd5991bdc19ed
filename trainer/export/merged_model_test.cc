#include "trainer/export/merged_model.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/error.h"
#include "trainer/export/export_test_support.h"
#include "trainer/export/reference.h"
#include "trainer/testing.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

using ::testing::HasSubstr;

const std::string kQuery = "model.layers.1.self_attn.q_proj";

class MergedModel : public testing::Test {
 protected:
  std::string Merged(const TinyModel& model, const MergedModelOptions& options,
                     const std::string& name = "merged") {
    std::filesystem::create_directory(directory_.File(name));
    WriteMergedModel(model.files, AdaptersByPath(*model.decoder, *model.adapters), nullptr,
                     directory_.File(name), options);
    return directory_.File(name);
  }
  // The base as a Hugging Face directory of this dtype.
  std::string PlainBase(at::ScalarType dtype) {
    const BaseModelFiles files = OpenBaseModel(kTinyGguf);
    const std::string path = directory_.File("base");
    std::filesystem::create_directory(path);
    WriteMergedModel(files, {}, nullptr, path, {.dtype = dtype});
    return path;
  }
  TemporaryDirectory directory_;
};

at::Tensor ExpectedWeight(const TinyModel& model, const std::string& path) {
  const LoraWeights& pair = *AdaptersByPath(*model.decoder, *model.adapters).at(path);
  return model.files.tensors->Load(path + ".weight", at::kFloat)
      .add(at::matmul(pair.b.detach(), pair.a.detach()).mul(pair.scaling));
}

TEST_F(MergedModel, GgufBase_BecomesADirectoryThatAnswersTheSame) {
  const TinyModel model;
  const BaseModelFiles merged = OpenBaseModel(Merged(model, {.dtype = at::kFloat}));
  EXPECT_EQ(merged.config["dtype"], "float32");
  EXPECT_EQ(merged.config["model_type"], "llama");
  EXPECT_EQ(merged.generation_config["eos_token_id"], 2);
  EXPECT_EQ(merged.tensors->List().size(), model.files.tensors->List().size());
  EXPECT_TRUE(at::allclose(merged.tensors->Load(kQuery + ".weight", at::kFloat),
                           ExpectedWeight(model, kQuery), 1e-6, 1e-6));
  const std::string norm = "model.layers.0.input_layernorm.weight";
  EXPECT_TRUE(at::equal(merged.tensors->Load(norm, at::kFloat),
                        model.files.tensors->Load(norm, at::kFloat)));

  const at::Tensor ids = at::arange(0, 20).remainder(48).reshape({2, 10});
  const at::Tensor mask = at::ones({2, 10}, at::kLong);
  const auto decoder = Decoder::Load(merged, {.dtype = at::kFloat});
  const at::Tensor wanted = ComputeLogits(*model.decoder, model.adapters.get(), ids, mask);
  const at::Tensor got = ComputeLogits(*decoder, nullptr, ids, mask);
  EXPECT_LT(got.sub(wanted).abs().max().item<float>(), 1e-4);
  EXPECT_GT(ComputeLogits(*model.decoder, nullptr, ids, mask).sub(wanted).abs().max().item<float>(),
            0.1);
}

TEST_F(MergedModel, BaseDtype_IsKeptAndRoundedToOnce) {
  const TinyModel model(PlainBase(at::kBFloat16));
  const BaseModelFiles merged = OpenBaseModel(Merged(model, {.dtype = at::kFloat}));
  EXPECT_EQ(merged.config["dtype"], "bfloat16");
  EXPECT_EQ(merged.tensors->Find(kQuery + ".weight")->stored_type, "BF16");
  EXPECT_TRUE(at::equal(merged.tensors->Load(kQuery + ".weight", at::kBFloat16),
                        ExpectedWeight(model, kQuery).to(at::kBFloat16)));
}

TEST_F(MergedModel, AboveTheSize_IsShardedWithAnIndex) {
  const TinyModel model;
  const std::string path = Merged(model, {.dtype = at::kFloat, .shard_bytes = 20'000});
  EXPECT_FALSE(std::filesystem::exists(path + "/model.safetensors"));
  const auto index = nlohmann::json::parse(ReadWholeFile(path + "/model.safetensors.index.json"));
  const std::string first = index["weight_map"]["model.embed_tokens.weight"];
  EXPECT_THAT(first, testing::MatchesRegex("model-0000[0-9]-of-0000[0-9].safetensors"));
  std::int64_t bytes = 0;
  for (const TensorInfo& info : model.files.tensors->List()) {
    bytes += model.files.tensors->Load(info.name, at::kFloat).numel() * 4;
    const auto file =
        SafetensorsFile::Open(path + "/" + index["weight_map"][info.name].get<std::string>());
    EXPECT_TRUE(file->Has(info.name));
  }
  EXPECT_EQ(index["metadata"]["total_size"], bytes);
  const std::string whole = Merged(model, {.dtype = at::kFloat}, "whole");
  const BaseModelFiles a = OpenBaseModel(path);
  const BaseModelFiles b = OpenBaseModel(whole);
  ASSERT_EQ(a.tensors->List().size(), b.tensors->List().size());
  for (const TensorInfo& info : a.tensors->List()) {
    EXPECT_TRUE(
        at::equal(a.tensors->Load(info.name, at::kFloat), b.tensors->Load(info.name, at::kFloat)))
        << info.name;
  }
}

TEST_F(MergedModel, QuantisationConfig_IsDroppedWithTheQuantisation) {
  const std::string base = directory_.File("fp8");
  std::filesystem::create_directory(base);
  WriteSafetensors(base + "/model.safetensors",
                   {{"m.weight", at::ones({4, 4}).to(at::kFloat8_e4m3fn)},
                    {"m.weight_scale_inv", at::ones({1, 1}).mul(2)}});
  std::ofstream(base + "/config.json")
      << R"({"quantization_config":{"quant_method":"fp8"},"torch_dtype":"bfloat16"})";
  const std::string path = directory_.File("merged");
  std::filesystem::create_directory(path);
  const BaseModelFiles files = OpenBaseModel(base);
  WriteMergedModel(files, {}, nullptr, path, {.dtype = at::kBFloat16});
  const BaseModelFiles merged = OpenBaseModel(path);
  EXPECT_FALSE(merged.config.contains("quantization_config"));
  EXPECT_EQ(merged.config["dtype"], "bfloat16");
  ASSERT_EQ(merged.tensors->List().size(), 1u);
  EXPECT_EQ(merged.tensors->Load("m.weight", at::kFloat).sum().item<float>(), 32);
}

TEST_F(MergedModel, LicenceAndNotice_TravelAlong_OtherFilesDoNot) {
  const std::string base = PlainBase(at::kFloat);
  std::ofstream(base + "/LICENSE.txt") << "terms";
  std::ofstream(base + "/NOTICE") << "notice";
  std::ofstream(base + "/modeling_x.py") << "code";
  const TinyModel model(base);
  const std::string path = Merged(model, {});
  EXPECT_EQ(ReadWholeFile(path + "/LICENSE.txt"), "terms");
  EXPECT_EQ(ReadWholeFile(path + "/NOTICE"), "notice");
  EXPECT_FALSE(std::filesystem::exists(path + "/modeling_x.py"));
}

TEST_F(MergedModel, AdapterOfAModuleThatIsNotThere_Refused) {
  const TinyModel model;
  LoraWeights weights;
  std::filesystem::create_directory(directory_.File("merged"));
  const std::string message = MessageOf(Reason::kBadModel, [&] {
    WriteMergedModel(model.files, {{"model.layers.9.mlp.up_proj", &weights}}, nullptr,
                     directory_.File("merged"), {});
  });
  EXPECT_THAT(message, HasSubstr("no tensor 'model.layers.9.mlp.up_proj.weight'"));
}

}  // namespace
}  // namespace offshoot::trainer
