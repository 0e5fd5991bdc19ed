#include "trainer/export/derivative.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "trainer/export/export_test_support.h"
#include "trainer/export/reference.h"
#include "trainer/export/verification.h"
#include "trainer/testing.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

const std::string kDigest = "sha256:" + std::string(64, 'a');

class DerivativeTest : public testing::Test {
 protected:
  DerivativeTest() {
    request_.base = &model_.files;
    request_.decoder = model_.decoder.get();
    request_.adapters = model_.adapters.get();
    request_.directory = result_;
    request_.name = "tiny";
    request_.base_digest = kDigest;
    request_.datasets = {{"chat", kDigest}};
    request_.merged = true;
    request_.merged_options.dtype = at::kFloat;
    request_.settings = {{"lora_r", 4}};
    request_.first_step = 21;
    request_.last_step = 40;
    request_.base_eval_loss = 4.0;
    request_.eval_loss = 2.0;
    request_.metrics_path = directory_.Write("metrics.jsonl", "{\"step\":1}\n");
    WriteReference(reference_, *model_.decoder, model_.adapters.get(), at::kFloat,
                   {{1, 2, 3, 4, 5}, {}, {7, 8}});
  }
  Json Lineage() const { return Json::parse(ReadWholeFile(result_ + "/offshoot.json")); }
  VerificationReport Verify() const {
    return VerifyDerivative({result_, kTinyGguf, reference_, "cpu"});
  }
  std::string Complaint() const {
    return MessageOf(Reason::kBadModel, [&] { Verify(); });
  }
  // Replaces a tensor file and tells offshoot.json, as a faulty export would.
  void Replace(const std::string& name, std::map<std::string, at::Tensor> tensors) {
    const std::string path = result_ + "/" + name;
    for (auto& [key, tensor] : tensors) tensor = tensor.clone();  // off the file it replaces
    WriteSafetensors(path, tensors, {{"format", "pt"}});
    Json lineage = Lineage();
    for (Json& file : lineage["files"]) {
      if (file["path"] == name) file["digest"] = Sha256OfFile(path);
    }
    std::ofstream(result_ + "/offshoot.json") << lineage;
  }
  std::map<std::string, at::Tensor> Tensors(const std::string& name) const {
    std::map<std::string, at::Tensor> tensors;
    const auto file = SafetensorsFile::Open(result_ + "/" + name);
    for (const TensorInfo& info : file->tensors()) tensors[info.name] = file->Get(info.name);
    return tensors;
  }

  TemporaryDirectory directory_;
  const std::string result_ = directory_.File("result");
  const std::string reference_ = directory_.File("reference.safetensors");
  TinyModel model_;
  DerivativeRequest request_;
};

TEST_F(DerivativeTest, Written_HoldsEveryFileWithItsDigest) {
  WriteDerivative(request_);
  EXPECT_FALSE(std::filesystem::exists(result_ + ".tmp"));
  std::vector<std::string> paths;
  const Json lineage = Lineage();
  for (const Json& file : lineage["files"]) {
    const std::string path = file["path"];
    paths.push_back(path);
    EXPECT_EQ(file["digest"], Sha256OfFile(result_ + "/" + path)) << path;
    EXPECT_EQ(file["size_bytes"], std::filesystem::file_size(result_ + "/" + path)) << path;
  }
  EXPECT_THAT(paths,
              testing::ElementsAre("README.md", "adapter_config.json", "adapter_model.safetensors",
                                   "merged/config.json", "merged/generation_config.json",
                                   "merged/model.safetensors", "training_metrics.jsonl"));
  const Json config = Json::parse(ReadWholeFile(result_ + "/adapter_config.json"));
  EXPECT_EQ(config["base_model_name_or_path"], kDigest);
  EXPECT_EQ(ReadWholeFile(result_ + "/training_metrics.jsonl"), "{\"step\":1}\n");
}

TEST_F(DerivativeTest, Lineage_NamesWhatItWasMadeOf) {
  request_.attempt = 2;
  request_.base_model_id = "org/tiny";
  request_.lineage = {{"spec_digest", "sha256:5"},
                      {"spec_yaml", "name: tiny\n"},
                      {"coordinator_version", "9.9"},
                      {"attempts",
                       {{{"number", 1}, {"worker", "w1"}, {"first_step", 1}, {"last_step", 23}},
                        {{"number", 2}, {"worker", "w2"}, {"first_step", 0}, {"last_step", 0}}}}};
  request_.reproducible = true;
  request_.environment = {{"threads", 2}};
  WriteDerivative(request_);
  const Json lineage = Lineage();
  EXPECT_EQ(lineage["base_model"],
            (Json{{"id", "org/tiny"}, {"revision", nullptr}, {"digest", kDigest}}));
  EXPECT_EQ(lineage["datasets"], Json::array({{{"type", "chat"}, {"digest", kDigest}}}));
  EXPECT_EQ(lineage["spec_digest"], "sha256:5");
  EXPECT_EQ(lineage["spec_yaml"], "name: tiny\n");
  EXPECT_EQ(lineage["versions"]["coordinator"], "9.9");
  EXPECT_EQ(lineage["versions"]["offshoot"], OFFSHOOT_VERSION);
  EXPECT_EQ(lineage["attempts"],
            Json::parse(R"([{"number":1,"worker":"w1","first_step":1,"last_step":23},
                            {"number":2,"worker":"w2","first_step":21,"last_step":40}])"));
  EXPECT_EQ(lineage["evaluation"],
            (Json{{"base_eval_loss", 4.0}, {"eval_loss", 2.0}, {"tokens", 0}}));
  EXPECT_EQ(lineage["reproducible"], true);
  EXPECT_EQ(lineage["environment"]["threads"], 2);
}

TEST_F(DerivativeTest, StartedByHand_NamesThisAttempt) {
  WriteDerivative(request_);
  EXPECT_EQ(Lineage()["attempts"], Json::parse(R"([{"number":1,"first_step":21,"last_step":40}])"));
}

TEST_F(DerivativeTest, WrittenAgain_ReplacesTheOld) {
  WriteDerivative(request_);
  std::ofstream(result_ + "/stray") << "x";
  std::filesystem::create_directory(result_ + ".tmp");  // what a kill leaves
  request_.merged = false;
  WriteDerivative(request_);
  EXPECT_FALSE(std::filesystem::exists(result_ + "/stray"));
  EXPECT_FALSE(std::filesystem::exists(result_ + "/merged"));
  EXPECT_FALSE(std::filesystem::exists(result_ + ".tmp"));
  EXPECT_NO_THROW(Verify());
}

TEST_F(DerivativeTest, FailedExport_KeepsTheOldAndLeavesNothing) {
  WriteDerivative(request_);
  const std::string before = ReadWholeFile(result_ + "/offshoot.json");
  const TinyModel other("trainer/weights/testdata/tiny_qwen2.gguf");
  request_.base = &other.files;  // has no layer 1 to merge into
  EXPECT_THROW(WriteDerivative(request_), Error);
  EXPECT_EQ(ReadWholeFile(result_ + "/offshoot.json"), before);
  EXPECT_FALSE(std::filesystem::exists(result_ + ".tmp"));
}

TEST_F(DerivativeTest, Verify_GoodExport_IsEqual) {
  WriteDerivative(request_);
  const VerificationReport report = Verify();
  EXPECT_EQ(report.adapter_distance, 0);
  EXPECT_GT(report.base_distance, 0.05);
  EXPECT_GE(report.merged_distance, 0);
  EXPECT_LT(report.merged_distance, 1e-5);
}

TEST_F(DerivativeTest, Verify_Bfloat16_IsWithinRounding) {
  const TinyModel model(kTinyGguf, at::kBFloat16);
  request_.decoder = model.decoder.get();
  request_.adapters = model.adapters.get();
  request_.merged_options.dtype = at::kBFloat16;
  WriteReference(reference_, *model.decoder, model.adapters.get(), at::kBFloat16, {{1, 2, 3, 4}});
  WriteDerivative(request_);
  const VerificationReport report = Verify();
  EXPECT_LE(report.adapter_distance, 5e-3);
  EXPECT_LE(report.merged_distance, 1e-1);
}

// The adapter answers on the quantised base, the merged models as the plain base with the adapter.
TEST_F(DerivativeTest, Verify_TrainedOnFourBits_EachExportAgainstItsOwnBase) {
  const TinyModel model(kTinyGguf, at::kFloat, Quantisation::kNf4);
  const auto tokenizer = Tokenizer::FromDirectory("trainer/tokenizer/testdata/byte_level");
  request_.decoder = model.decoder.get();
  request_.adapters = model.adapters.get();
  request_.tokenizer = tokenizer.get();
  request_.gguf_type = "F16";
  request_.quantisation = Quantisation::kNf4;
  WriteReference(reference_, *model.decoder, model.adapters.get(), at::kFloat, {{1, 2, 3, 4}},
                 Quantisation::kNf4);
  WriteDerivative(request_);
  const VerificationReport report = Verify();
  EXPECT_LT(report.adapter_distance, 1e-5);
  EXPECT_LT(report.merged_distance, 1e-4);
  EXPECT_GE(report.gguf_distance, 0);
  EXPECT_LT(report.gguf_distance, 1e-2);
  EXPECT_EQ(Lineage()["trained_on"], "nf4");
  EXPECT_THAT(Lineage()["merged_into"].get<std::string>(), HasSubstr("own weights"));
  EXPECT_THAT(ReadWholeFile(result_ + "/README.md"), HasSubstr("4 bits"));
  EXPECT_TRUE(std::filesystem::exists(result_ + "/adapter.gguf"));
}

TEST_F(DerivativeTest, Verify_AdapterTrainedOnFourBits_IsNotThePlainBases) {
  const TinyModel model(kTinyGguf, at::kFloat, Quantisation::kNf4);
  WriteReference(reference_, *model.decoder, model.adapters.get(), at::kFloat, {{1, 2, 3, 4}});
  request_.decoder = model.decoder.get();
  request_.adapters = model.adapters.get();
  WriteDerivative(request_);
  EXPECT_THAT(Complaint(), HasSubstr("adapter_model.safetensors"));
}

TEST_F(DerivativeTest, Verify_AdapterThatLostItsTraining_Refused) {
  WriteDerivative(request_);
  auto tensors = Tensors("adapter_model.safetensors");
  for (auto& [name, tensor] : tensors) {
    if (name.find("lora_B") != std::string::npos) tensor = at::zeros(tensor.sizes());
  }
  Replace("adapter_model.safetensors", tensors);
  EXPECT_THAT(Complaint(), HasSubstr("adapter_model.safetensors: read back from disk"));
}

TEST_F(DerivativeTest, Verify_MergedModelWithoutTheAdapter_Refused) {
  WriteDerivative(request_);
  auto tensors = Tensors("merged/model.safetensors");
  for (auto& [name, tensor] : tensors) tensor = model_.files.tensors->Load(name, at::kFloat);
  Replace("merged/model.safetensors", tensors);
  EXPECT_THAT(Complaint(), HasSubstr("is not the base's with the adapter merged into it"));
}

TEST_F(DerivativeTest, Verify_MergedModelWithAnotherConfig_Refused) {
  WriteDerivative(request_);
  Json config = Json::parse(ReadWholeFile(result_ + "/merged/config.json"));
  config["rope_theta"] = 100.0;
  std::ofstream(result_ + "/merged/config.json") << config;
  Json lineage = Lineage();
  for (Json& file : lineage["files"]) {
    file["digest"] = Sha256OfFile(result_ + "/" + file["path"].get<std::string>());
  }
  std::ofstream(result_ + "/offshoot.json") << lineage;
  EXPECT_THAT(Complaint(), HasSubstr("merged: read back from disk"));
}

TEST_F(DerivativeTest, Verify_AdapterWithAMissingTensor_Refused) {
  WriteDerivative(request_);
  auto tensors = Tensors("adapter_model.safetensors");
  const std::string name = tensors.begin()->first;
  tensors.erase(tensors.begin());
  Replace("adapter_model.safetensors", tensors);
  EXPECT_THAT(Complaint(), HasSubstr(name));
}

TEST_F(DerivativeTest, Verify_ChangedOrMissingFile_Named) {
  WriteDerivative(request_);
  std::ofstream(result_ + "/README.md") << "other";
  EXPECT_THAT(Complaint(), HasSubstr("README.md: its bytes are not those"));
  std::filesystem::remove(result_ + "/README.md");
  EXPECT_THAT(Complaint(), HasSubstr("README.md: is missing"));
  std::ofstream(result_ + "/offshoot.json") << "[]";
  EXPECT_THAT(Complaint(), HasSubstr("offshoot.json: is not a lineage file"));
}

TEST_F(DerivativeTest, Verify_ReferenceWithNan_Refused) {
  WriteDerivative(request_);
  const auto file = SafetensorsFile::Open(reference_);
  std::map<std::string, at::Tensor> tensors;
  for (const TensorInfo& info : file->tensors()) tensors[info.name] = file->Get(info.name).clone();
  tensors["logits"].fill_(std::numeric_limits<float>::quiet_NaN());
  WriteSafetensors(reference_, tensors, file->metadata());
  EXPECT_THAT(Complaint(), HasSubstr("are not finite"));
}

TEST_F(DerivativeTest, ComputeLogits_PaddedRow_EqualsTheRowAlone) {
  const at::Tensor ids = SafetensorsFile::Open(reference_)->Get("input_ids");
  const at::Tensor mask = SafetensorsFile::Open(reference_)->Get("attention_mask");
  const at::Tensor both = ComputeLogits(*model_.decoder, nullptr, ids, mask);
  const at::Tensor alone = ComputeLogits(*model_.decoder, nullptr, ids.slice(0, 1).slice(1, 0, 2),
                                         at::ones({1, 2}, at::kLong));
  EXPECT_LT(both[1].slice(0, 0, 2).sub(alone[0]).abs().max().item<float>(), 1e-5);
  EXPECT_EQ(both[1].slice(0, 2).abs().max().item<float>(), 0);
}

TEST_F(DerivativeTest, ComputeLogits_BadInput_Named) {
  const auto complaint = [&](const at::Tensor& ids, const at::Tensor& mask) {
    return MessageOf(Reason::kBadData, [&] { ComputeLogits(*model_.decoder, nullptr, ids, mask); });
  };
  const at::Tensor mask = at::ones({1, 3}, at::kLong);
  EXPECT_THAT(complaint(at::full({1, 3}, 48, at::kLong), mask), HasSubstr("the token 48"));
  EXPECT_THAT(complaint(at::full({1, 3}, -1, at::kLong), mask), HasSubstr("the token -1"));
  EXPECT_THAT(complaint(at::zeros({1, 4}, at::kLong), mask), HasSubstr("[batch, sequence]"));
  at::Tensor hole = mask.clone();
  hole[0][1].fill_(0);
  EXPECT_THAT(complaint(at::zeros({1, 3}, at::kLong), hole), HasSubstr("ones and then zeros"));
}

}  // namespace
}  // namespace offshoot::trainer
