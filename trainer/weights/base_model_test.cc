#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/error.h"
#include "trainer/weights/safetensors.h"
#include "trainer/weights/tensor_source.h"
#include "trainer/weights/test_files.h"

namespace offshoot::trainer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class BaseModel : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) {
    WriteBytes(directory_.File(name), text);
  }
  void WriteShards() {
    Write("config.json", R"({"model_type":"llama"})");
    WriteSafetensors(directory_.File("s-1.safetensors"), {{"a", at::ones({2})}});
    WriteSafetensors(directory_.File("s-2.safetensors"),
                     {{"b", at::ones({3})}, {"c", at::ones({4})}});
    Write("model.safetensors.index.json",
          R"({"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors","c":"s-2.safetensors"}})");
  }
  void ExpectRefused(const std::string& part) {
    EXPECT_THAT([&] { OpenBaseModel(directory_.path()); }, ThrowsMessage<Error>(HasSubstr(part)));
  }
  TemporaryDirectory directory_;
};

TEST_F(BaseModel, SingleFile_OpensAndSharesTheMapping) {
  Write("config.json", R"({"model_type":"llama"})");
  Write("generation_config.json", R"({"eos_token_id":2})");
  WriteSafetensors(directory_.File("model.safetensors"), {{"w", at::ones({2, 3}, at::kBFloat16)}});
  const BaseModelFiles model = OpenBaseModel(directory_.path());
  EXPECT_EQ(model.config["model_type"], "llama");
  EXPECT_EQ(model.generation_config["eos_token_id"], 2);
  EXPECT_FALSE(model.is_gguf);
  const at::Tensor first = model.tensors->Load("w", at::kBFloat16);
  EXPECT_EQ(first.const_data_ptr(), model.tensors->Load("w", at::kBFloat16).const_data_ptr());
  EXPECT_EQ(model.tensors->Load("w", at::kFloat).scalar_type(), at::kFloat);
  EXPECT_EQ(model.tensors->Find("w")->stored_type, "BF16");
  EXPECT_EQ(model.tensors->Find("x"), nullptr);
  EXPECT_THAT([&] { model.tensors->Load("x", at::kFloat); },
              ThrowsMessage<Error>(HasSubstr("no tensor 'x'")));
}

TEST_F(BaseModel, Shards_AreOneSource) {
  WriteShards();
  const BaseModelFiles model = OpenBaseModel(directory_.path());
  EXPECT_EQ(model.tensors->List().size(), 3u);
  EXPECT_EQ(model.tensors->Load("c", at::kFloat).numel(), 4);
  EXPECT_TRUE(model.generation_config.is_null());
}

TEST_F(BaseModel, SymbolicLinksOfASnapshot_AreFollowed) {
  const TemporaryDirectory blobs;
  WriteBytes(blobs.File("1"), R"({"model_type":"llama"})");
  WriteSafetensors(blobs.File("2"), {{"w", at::ones({2})}});
  std::filesystem::create_symlink(blobs.File("1"), directory_.File("config.json"));
  std::filesystem::create_symlink(blobs.File("2"), directory_.File("model.safetensors"));
  EXPECT_EQ(OpenBaseModel(directory_.path()).tensors->List().size(), 1u);
}

TEST_F(BaseModel, AbsentShard_Named) {
  WriteShards();
  std::filesystem::remove(directory_.File("s-2.safetensors"));
  ExpectRefused("lacks the shards s-2.safetensors");
}

TEST_F(BaseModel, IndexNamesATensorThatIsNotThere_Named) {
  WriteShards();
  Write("model.safetensors.index.json", R"({"weight_map":{"zz":"s-1.safetensors"}})");
  ExpectRefused("zz (s-1.safetensors)");
}

TEST_F(BaseModel, IndexThatLeavesTheDirectory_Refused) {
  WriteShards();
  Write("model.safetensors.index.json", R"({"weight_map":{"a":"../s-1.safetensors"}})");
  ExpectRefused("not a *.safetensors file beside it");
  Write("model.safetensors.index.json", R"({"weight_map":{"a":7}})");
  ExpectRefused("not a *.safetensors file beside it");
  Write("model.safetensors.index.json", "{}");
  ExpectRefused("has no weight_map");
  Write("model.safetensors.index.json", "{");
  ExpectRefused("is not valid JSON");
}

TEST_F(BaseModel, MissingOrBrokenPieces_EachNamed) {
  EXPECT_THAT([] { OpenBaseModel("/no/such/model"); },
              ThrowsMessage<Error>(HasSubstr("/no/such/model: there is no such file")));
  ExpectRefused("has no config.json and no GGUF file");
  Write("config.json", "{]");
  ExpectRefused("config.json: is not valid JSON");
  Write("config.json", "[]");
  ExpectRefused("config.json: is not a JSON object");
  Write("config.json", "{}");
  ExpectRefused("has neither model.safetensors nor");
  Write("pytorch_model.bin", "x");
  ExpectRefused("is a pickle, which is never read");
  Write("model.safetensors", "short");
  ExpectRefused("model.safetensors: is no safetensors file");
  EXPECT_THAT([&] { OpenBaseModel(directory_.File("model.safetensors")); },
              ThrowsMessage<Error>(HasSubstr("give its directory")));
  EXPECT_THAT([&] { OpenBaseModel(directory_.File("config.json")); },
              ThrowsMessage<Error>(HasSubstr("is no GGUF file")));
}

TEST_F(BaseModel, UnreadableQuantisation_Named) {
  WriteSafetensors(directory_.File("model.safetensors"), {{"w", at::ones({2})}});
  Write("config.json", R"({"quantization_config":{"quant_method":"gptq"}})");
  ExpectRefused("quantised with \"gptq\"");
}

TEST_F(BaseModel, DirectoryWithOneGguf_OpensIt) {
  std::filesystem::copy("trainer/weights/testdata/tiny_llama.gguf", directory_.File("a.gguf"));
  EXPECT_TRUE(OpenBaseModel(directory_.path()).is_gguf);
  std::filesystem::copy("trainer/weights/testdata/tiny_qwen2.gguf", directory_.File("b.gguf"));
  ExpectRefused("holds 2 GGUF files");
}

TEST_F(BaseModel, Fp8Blocks_AreDequantised) {
  at::manual_seed(7);
  Write("config.json", R"({"quantization_config":{"quant_method":"fp8"}})");
  const at::Tensor weight = at::randn({200, 150}).to(at::kFloat8_e4m3fn);
  const at::Tensor scale = at::rand({2, 2});
  WriteSafetensors(directory_.File("model.safetensors"),
                   {{"m.weight", weight}, {"m.weight_scale_inv", scale}});
  const BaseModelFiles model = OpenBaseModel(directory_.path());
  EXPECT_EQ(model.tensors->List().size(), 1u);
  EXPECT_EQ(model.tensors->Find("m.weight_scale_inv"), nullptr);
  const at::Tensor plain = weight.to(at::kFloat);
  const at::Tensor loaded = model.tensors->Load("m.weight", at::kFloat);
  for (const auto& [row, column] :
       {std::pair{0, 0}, {127, 127}, {128, 127}, {127, 128}, {199, 149}}) {
    EXPECT_EQ(loaded[row][column].item<float>(),
              plain[row][column].item<float>() * scale[row / 128][column / 128].item<float>())
        << row << ", " << column;
  }
  EXPECT_TRUE(at::equal(model.tensors->Load("m.weight", at::kBFloat16), loaded.to(at::kBFloat16)));
}

TEST_F(BaseModel, Fp8BlocksOfAnotherSize_FollowTheConfig) {
  Write("config.json",
        R"({"quantization_config":{"quant_method":"fp8","weight_block_size":[2,3]}})");
  WriteSafetensors(directory_.File("model.safetensors"),
                   {{"w", at::ones({4, 6}).to(at::kFloat8_e4m3fn)},
                    {"w_scale_inv", at::arange(0, 4).to(at::kFloat).reshape({2, 2})}});
  const at::Tensor loaded = OpenBaseModel(directory_.path()).tensors->Load("w", at::kFloat);
  EXPECT_EQ(loaded[3][0].item<float>(), 2);
  EXPECT_EQ(loaded[1][3].item<float>(), 1);
}

TEST_F(BaseModel, Fp8WithoutOrWithWrongScale_Refused) {
  Write("config.json", R"({"quantization_config":{"quant_method":"fp8"}})");
  const at::Tensor weight = at::ones({130, 2}).to(at::kFloat8_e4m3fn);
  WriteSafetensors(directory_.File("model.safetensors"), {{"w", weight}});
  EXPECT_THAT([&] { OpenBaseModel(directory_.path()).tensors->Load("w", at::kFloat); },
              ThrowsMessage<Error>(AllOf(HasSubstr("tensor 'w'"), HasSubstr("neither"))));
  WriteSafetensors(directory_.File("model.safetensors"),
                   {{"w", weight}, {"w_scale_inv", at::ones({1, 1})}});
  EXPECT_THAT([&] { OpenBaseModel(directory_.path()).tensors->Load("w", at::kFloat); },
              ThrowsMessage<Error>(HasSubstr("shape [2, 1]")));
}

}  // namespace
}  // namespace offshoot::trainer
