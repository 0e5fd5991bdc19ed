#include "trainer/export/gguf_export.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/error.h"
#include "trainer/export/export_test_support.h"
#include "trainer/export/gguf_tokenizer.h"
#include "trainer/export/reference.h"
#include "trainer/testing.h"
#include "trainer/weights/gguf.h"

namespace offshoot::trainer {
namespace {

using ::testing::HasSubstr;

// Any tokenizer will do: of a GGUF base the metadata is copied.
constexpr char kTokenizer[] = "trainer/tokenizer/testdata/byte_level";

class GgufExport : public testing::TestWithParam<std::pair<const char*, const char*>> {
 protected:
  TemporaryDirectory directory_;
};

class GgufAdapter : public testing::TestWithParam<const char*> {};

// The exported file, read back, answers as base + adapter does.
TEST_P(GgufExport, ReadBack_AnswersAsBaseAndAdapter) {
  const auto [family, type] = GetParam();
  const TinyModel model(std::string("trainer/weights/testdata/tiny_") + family + ".gguf");
  const auto tokenizer = Tokenizer::FromDirectory(kTokenizer);
  const std::string path = directory_.File("out.gguf");
  WriteMergedGguf(model.files, *model.decoder, AdaptersByPath(*model.decoder, *model.adapters),
                  *tokenizer, path, type, "tiny");
  const BaseModelFiles read = OpenBaseModel(path);
  nlohmann::json wanted = model.files.config;
  EXPECT_EQ(read.config, wanted);
  EXPECT_EQ(read.gguf_metadata["tokenizer.ggml.tokens"],
            model.files.gguf_metadata["tokenizer.ggml.tokens"]);
  EXPECT_EQ(read.tensors->List().size(), model.files.tensors->List().size());
  const at::Tensor ids = at::arange(0, 20).remainder(48).reshape({2, 10});
  const at::Tensor mask = at::ones({2, 10}, at::kLong);
  const auto decoder = Decoder::Load(read, {.dtype = at::kFloat});
  const at::Tensor expected = ComputeLogits(*model.decoder, model.adapters.get(), ids, mask);
  const at::Tensor got = ComputeLogits(*decoder, nullptr, ids, mask);
  const double distance = got.sub(expected).norm().item<double>() / expected.norm().item<double>();
  EXPECT_LT(distance, std::string(type) == "F32" ? 1e-5 : 5e-2);
}

INSTANTIATE_TEST_SUITE_P(FamiliesAndTypes, GgufExport,
                         testing::Values(std::pair{"llama", "F32"}, std::pair{"llama", "Q8_0"},
                                         std::pair{"llama", "BF16"}, std::pair{"qwen2", "F32"},
                                         std::pair{"qwen2", "F16"}, std::pair{"qwen3", "F32"},
                                         std::pair{"qwen3", "Q8_0"}, std::pair{"qwen3moe", "F32"},
                                         std::pair{"qwen3moe", "Q8_0"}),
                         [](const auto& info) {
                           return std::string(info.param.first) + "_" + info.param.second;
                         });

// A tensor of a GGUF file as it lies there, in float32.
at::Tensor RawTensor(const GgufFile& file, const std::string& name) {
  for (const GgufTensor& tensor : file.layout.tensors) {
    if (tensor.name != name) continue;
    EXPECT_STREQ(tensor.type->name, "F32");
    return at::from_blob(const_cast<std::uint8_t*>(file.file->data()) + tensor.begin, tensor.shape,
                         at::kFloat)
        .clone();
  }
  ADD_FAILURE() << name << " is not there";
  return {};
}

// llama.cpp adds alpha / r * B A to the file's own weight: that must be what merging gives.
TEST_P(GgufAdapter, AddedToTheBase_IsTheMergedModel) {
  const bool mixture = std::string(GetParam()) == "qwen3moe";
  const TinyModel model(std::string("trainer/weights/testdata/tiny_") + GetParam() + ".gguf",
                        at::kFloat, Quantisation::kNone,
                        mixture ? std::vector<std::string>{"attention", "experts"}
                                : std::vector<std::string>{"all-linear"});
  const TemporaryDirectory directory;
  const auto tokenizer = Tokenizer::FromDirectory(kTokenizer);
  const AdapterByPath adapters = AdaptersByPath(*model.decoder, *model.adapters);
  WriteMergedGguf(model.files, *model.decoder, {}, *tokenizer, directory.File("base"), "F32", "x");
  WriteMergedGguf(model.files, *model.decoder, adapters, *tokenizer, directory.File("merged"),
                  "F32", "x");
  WriteGgufAdapter(model.decoder->spec(), adapters, directory.File("adapter"), "x");
  const GgufFile base = OpenGguf(directory.File("base"));
  const GgufFile merged = OpenGguf(directory.File("merged"));
  const GgufFile adapter = OpenGguf(directory.File("adapter"));
  const nlohmann::json& metadata = adapter.layout.metadata;
  EXPECT_EQ(metadata["general.type"], "adapter");
  EXPECT_EQ(metadata["adapter.type"], "lora");
  EXPECT_EQ(metadata["general.architecture"], base.layout.metadata["general.architecture"]);
  const double alpha = metadata["adapter.lora.alpha"];
  EXPECT_EQ(alpha, 8.0);
  int compared = 0;
  for (const GgufTensor& tensor : adapter.layout.tensors) {
    if (!tensor.name.ends_with(".lora_a")) continue;
    const std::string name = tensor.name.substr(0, tensor.name.size() - 7);
    const at::Tensor a = RawTensor(adapter, tensor.name), b = RawTensor(adapter, name + ".lora_b");
    const double scaling = alpha / static_cast<double>(b.size(-1));
    const at::Tensor sum = RawTensor(base, name).add(b.matmul(a), scaling);
    EXPECT_TRUE(sum.allclose(RawTensor(merged, name), 1e-5, 1e-6)) << name;
    EXPECT_FALSE(sum.allclose(RawTensor(base, name), 1e-3, 1e-3)) << name;
    ++compared;
  }
  // The pairs of a layer's three experts are one.
  EXPECT_EQ(compared, mixture ? 4 + 3 : static_cast<int>(adapters.size()));
}

INSTANTIATE_TEST_SUITE_P(Families, GgufAdapter,
                         testing::Values("llama", "qwen2", "qwen3", "qwen3moe"));

TEST(GgufExportRefusals, UnknownType_Named) {
  const TemporaryDirectory directory;
  const TinyModel model;
  const auto tokenizer = Tokenizer::FromDirectory(kTokenizer);
  EXPECT_THAT(MessageOf(Reason::kBadSpec,
                        [&] {
                          WriteMergedGguf(model.files, *model.decoder, {}, *tokenizer,
                                          directory.File("x.gguf"), "Q4_K", "x");
                        }),
              HasSubstr("F32, F16, BF16 or Q8_0, not as Q4_K"));
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

TEST(GgufWriter, RowsWrittenPieceByPiece_AreTheMatrix) {
  const TemporaryDirectory directory;
  const at::Tensor values = at::arange(0, 5 * 64, at::kFloat).reshape({5, 64});
  const std::vector<GgufSlot> slots = {{"a.weight", {5, 64}, FindGgmlType("Q8_0")}};
  GgufWriter whole(directory.File("whole.gguf"), {}, slots);
  whole.Write(0, values);
  whole.Finish();
  GgufWriter pieces(directory.File("pieces.gguf"), {}, slots);
  pieces.WriteRows(0, 3, values.narrow(0, 3, 2));
  EXPECT_THROW(pieces.Finish(), Error);
  EXPECT_THROW(pieces.WriteRows(0, 4, values.narrow(0, 3, 2)), Error);
  pieces.WriteRows(0, 0, values.narrow(0, 0, 3));
  pieces.Finish();
  EXPECT_EQ(ReadWholeFile(directory.File("pieces.gguf")),
            ReadWholeFile(directory.File("whole.gguf")));
}

// Metadata written alone, and read back.
nlohmann::json TokenizerMetadata(const BaseModelFiles& base, std::int64_t vocab_size) {
  const TemporaryDirectory directory;
  const auto tokenizer = Tokenizer::FromDirectory(base.path);
  GgufMetadata metadata;
  AddTokenizer(base, *tokenizer, vocab_size, metadata);
  GgufWriter(directory.File("x.gguf"), metadata, {}).Finish();
  return OpenGguf(directory.File("x.gguf")).layout.metadata;
}

TEST(GgufTokenizer, ByteLevelDirectory_IsDescribed) {
  BaseModelFiles base;
  base.path = kTokenizer;
  const auto tokenizer = Tokenizer::FromDirectory(kTokenizer);
  const std::int64_t size = tokenizer->vocab_size() + 3;
  const nlohmann::json metadata = TokenizerMetadata(base, size);
  EXPECT_EQ(metadata["tokenizer.ggml.model"], "gpt2");
  EXPECT_EQ(metadata["tokenizer.ggml.pre"], "llama-bpe");
  EXPECT_EQ(metadata["tokenizer.ggml.tokens"].size(), static_cast<std::size_t>(size));
  EXPECT_EQ(metadata["tokenizer.ggml.token_type"].back(), 5);
  EXPECT_EQ(metadata["tokenizer.ggml.bos_token_id"], *tokenizer->bos_id());
  EXPECT_EQ(metadata["tokenizer.ggml.add_bos_token"], true);
  // Our own reader of such metadata gives the same ids.
  const auto again = Tokenizer::FromGguf(metadata);
  for (const char* text : {"Hello world 12345", "naïve\n\n  café", "<|begin_of_text|>x"}) {
    EXPECT_EQ(again->Encode(text, false), tokenizer->Encode(text, false)) << text;
  }
}

TEST(GgufTokenizer, SeveralSplits_AreDeepseeks) {
  const TemporaryDirectory directory;
  BaseModelFiles base;
  base.path = directory.path();
  std::filesystem::copy(kTokenizer, base.path, std::filesystem::copy_options::recursive);
  nlohmann::json json = nlohmann::json::parse(ReadWholeFile(base.path + "/tokenizer.json"));
  nlohmann::json& steps = json["pre_tokenizer"]["pretokenizers"];
  const nlohmann::json bytes = steps.back();
  steps = nlohmann::json::array();
  for (const char* pattern :
       {R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
        "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"}) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back(bytes);
  directory.Write("tokenizer.json", json.dump());
  const auto tokenizer = Tokenizer::FromDirectory(base.path);
  const nlohmann::json metadata = TokenizerMetadata(base, tokenizer->vocab_size());
  EXPECT_EQ(metadata["tokenizer.ggml.pre"], "deepseek-v3");
  const auto again = Tokenizer::FromGguf(metadata);
  for (const char* text : {"Hello world 12345", "naïve\n\n  café $HOME.x", "猫がABC123。\r\n"}) {
    EXPECT_EQ(again->Encode(text, false), tokenizer->Encode(text, false)) << text;
  }
  steps.erase(0);
  directory.Write("tokenizer.json", json.dump());
  EXPECT_THAT(
      MessageOf(Reason::kBadModel, [&] { TokenizerMetadata(base, tokenizer->vocab_size()); }),
      HasSubstr("splits text in a way of its own"));
}

constexpr char kSentencePiece[] = "trainer/tokenizer/testdata/sentencepiece";

TEST(GgufTokenizer, SentencePieceDirectory_GetsScores) {
  const TemporaryDirectory directory;
  BaseModelFiles base;
  base.path = directory.path();
  std::filesystem::copy(kSentencePiece, base.path, std::filesystem::copy_options::recursive);
  nlohmann::json json = nlohmann::json::parse(ReadWholeFile(base.path + "/tokenizer.json"));
  // Every way to make a token of two, in the order of the tokens, as SentencePiece's have it.
  const nlohmann::json& ids = json["model"]["vocab"];
  nlohmann::json merges = nlohmann::json::array();
  for (const nlohmann::json& merge : json["model"]["merges"]) {
    const std::string text = merge[0].get<std::string>() + merge[1].get<std::string>();
    for (std::size_t cut = 1; cut < text.size(); ++cut) {
      const std::string left = text.substr(0, cut), right = text.substr(cut);
      if (ids.contains(left) && ids.contains(right)) merges.push_back({left, right});
    }
  }
  ASSERT_GT(merges.size(), json["model"]["merges"].size());
  json["model"]["merges"] = merges;
  directory.Write("tokenizer.json", json.dump());
  const auto tokenizer = Tokenizer::FromDirectory(base.path);
  const nlohmann::json metadata = TokenizerMetadata(base, tokenizer->vocab_size() + 2);
  EXPECT_EQ(metadata["tokenizer.ggml.model"], "llama");
  EXPECT_EQ(metadata["tokenizer.ggml.unknown_token_id"], 0);
  EXPECT_EQ(metadata["tokenizer.ggml.add_bos_token"], true);
  EXPECT_EQ(metadata["tokenizer.ggml.add_space_prefix"], true);
  const nlohmann::json& types = metadata["tokenizer.ggml.token_type"];
  EXPECT_EQ(types[0], 2);
  EXPECT_EQ(types[1], 3);
  EXPECT_EQ(types[3], 6);
  EXPECT_EQ(types.back(), 5);
  const auto again = Tokenizer::FromGguf(metadata);
  for (const char* text : {"Hello world 12345", "naïve\n\n  café 猫", "</s>x the in per"}) {
    EXPECT_EQ(again->Encode(text, true), tokenizer->Encode(text, true)) << text;
  }
}

TEST(GgufTokenizer, SentencePieceModels_AreDescribed) {
  for (const std::string name : {"llama_spm", "ernie_spm"}) {
    BaseModelFiles base;
    base.path = "trainer/tokenizer/testdata/" + name;
    const auto tokenizer = Tokenizer::FromDirectory(base.path);
    const nlohmann::json metadata = TokenizerMetadata(base, tokenizer->vocab_size());
    EXPECT_EQ(metadata["tokenizer.ggml.model"], "llama");
    EXPECT_EQ(metadata["tokenizer.ggml.add_space_prefix"], name == "llama_spm");
    const auto again = Tokenizer::FromGguf(metadata);
    for (const char* text :
         {"Hello world 12345", "naïve\n\n  café 猫", "</s>x the in per", "a<sep>b"}) {
      EXPECT_EQ(again->Encode(text, true), tokenizer->Encode(text, true)) << name << ": " << text;
    }
  }
}

TEST(GgufTokenizer, MergesThatNoScoreSays_Refused) {
  BaseModelFiles base;
  base.path = kSentencePiece;
  EXPECT_THAT(MessageOf(Reason::kBadModel, [&] { TokenizerMetadata(base, 1000); }),
              HasSubstr("of some pieces and not of"));
}

}  // namespace
}  // namespace offshoot::trainer
