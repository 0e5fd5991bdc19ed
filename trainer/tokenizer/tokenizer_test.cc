#include "trainer/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

const fs::path kTestData = "trainer/tokenizer/testdata";

std::string ReadFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void WriteFile(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

json ReadJson(const fs::path& path) { return json::parse(ReadFile(path)); }

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (fs::temp_directory_path() / "offshoot-tokenizer-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryDirectory() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::unique_ptr<Tokenizer> OpenNamed(const std::string& name) {
  if (name.starts_with("gguf_")) return Tokenizer::FromGguf(ReadJson(kTestData / (name + ".json")));
  return Tokenizer::FromDirectory((kTestData / name).string());
}

// A directory like byte_level with a chat template of its own.
std::unique_ptr<Tokenizer> WithTemplate(const std::string& source) {
  TemporaryDirectory directory;
  fs::copy(kTestData / "byte_level", directory.path(), fs::copy_options::recursive);
  WriteFile(directory.path() / "chat_template.jinja", source);
  return Tokenizer::FromDirectory(directory.path().string());
}

void ExpectVectors(const Tokenizer& tokenizer, const json& expected) {
  const auto id = [](const json& value) {
    return value.is_null() ? std::nullopt : std::optional(value.get<std::int64_t>());
  };
  EXPECT_EQ(tokenizer.vocab_size(), expected["size"]);
  EXPECT_EQ(tokenizer.bos_id(), id(expected["bos_id"]));
  EXPECT_EQ(tokenizer.eos_id(), id(expected["eos_id"]));
  EXPECT_EQ(tokenizer.pad_id(), id(expected["pad_id"]));
  for (const json& one : expected["cases"]) {
    SCOPED_TRACE(one["text"].dump());
    const auto ids = one["ids"].get<std::vector<std::int64_t>>();
    EXPECT_EQ(tokenizer.Encode(one["text"], false), ids);
    EXPECT_EQ(tokenizer.Encode(one["text"], true),
              one["ids_with_special"].get<std::vector<std::int64_t>>());
    EXPECT_EQ(tokenizer.Decode(ids, false), one["decoded"]);
    EXPECT_EQ(tokenizer.Decode(ids, true), one["decoded_without_special"]);
  }
}

class TokenizerVectors : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerVectors, AwkwardStrings_EqualTransformers) {
  ExpectVectors(*OpenNamed(GetParam()), ReadJson(kTestData / "vectors.json")[GetParam()]);
}

TEST_P(TokenizerVectors, SavedAndReadAgain_SameIds) {
  TemporaryDirectory directory;
  const auto original = OpenNamed(GetParam());
  original->Save(directory.path().string());
  const auto saved = Tokenizer::FromDirectory(directory.path().string());
  ExpectVectors(*saved, ReadJson(kTestData / "vectors.json")[GetParam()]);
  EXPECT_EQ(saved->has_chat_template(), original->has_chat_template());
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerVectors,
                         testing::Values("byte_level", "qwen2", "sentencepiece", "kimi", "hunyuan",
                                         "llama_spm", "ernie_spm", "gguf_llama_bpe", "gguf_smollm",
                                         "gguf_qwen2", "gguf_sentencepiece"),
                         [](const auto& info) { return info.param; });

TEST(Tokenizer, Offsets_CoverTheTextWithoutTrimming) {
  const auto tokenizer = OpenNamed("byte_level");
  const std::string text = "<|im_start|>  Hello \xF0\x9F\x98\x80 w\xC3\xB6rld\n";
  for (const bool special : {false, true}) {
    const Tokenizer::Encoding encoding = tokenizer->EncodeWithOffsets(text, special);
    ASSERT_EQ(encoding.ids.size(), encoding.byte_offsets.size());
    EXPECT_EQ(encoding.ids, tokenizer->Encode(text, special));
    std::size_t covered = 0;
    for (const auto& [begin, end] : encoding.byte_offsets) {
      if (end == 0) continue;  // BOS
      EXPECT_LE(begin, covered);
      covered = std::max(covered, end);
    }
    EXPECT_EQ(covered, text.size());
  }
}

TEST(Tokenizer, SpecialTokens_AreKnown) {
  const auto tokenizer = OpenNamed("qwen2");
  EXPECT_TRUE(tokenizer->IsSpecial(tokenizer->Encode("<|im_end|>", false).at(0)));
  EXPECT_FALSE(tokenizer->IsSpecial(tokenizer->Encode("<think>", false).at(0)));
  EXPECT_FALSE(tokenizer->IsSpecial(tokenizer->Encode("a", false).at(0)));
}

TEST(Tokenizer, ManyThreads_SameIds) {
  const auto tokenizer = OpenNamed("gguf_smollm");
  const json expected = ReadJson(kTestData / "vectors.json")["gguf_smollm"];
  std::vector<std::jthread> threads;
  std::atomic<int> wrong = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int repeat = 0; repeat < 20; ++repeat) {
        for (const json& one : expected["cases"]) {
          wrong +=
              tokenizer->Encode(one["text"], false) != one["ids"].get<std::vector<std::int64_t>>();
        }
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong, 0);
}

TEST(ChatTemplates, AllStyles_EqualTransformers) {
  std::map<std::string, std::unique_ptr<Tokenizer>> tokenizers;
  const auto chats = nlohmann::ordered_json::parse(ReadFile(kTestData / "chats.json"));
  for (const nlohmann::ordered_json& one : chats) {
    const std::string name = one["template"];
    SCOPED_TRACE(name + " " + one["chat"].get<std::string>() +
                 (one["add_generation_prompt"] ? " with prompt" : ""));
    auto& tokenizer = tokenizers[name];
    if (!tokenizer) tokenizer = WithTemplate(ReadFile(kTestData / "templates" / name));
    if (one.contains("error")) {
      EXPECT_THROW(tokenizer->ApplyChatTemplate(one["messages"], one["add_generation_prompt"]),
                   Error)
          << one["error"];
      continue;
    }
    const ChatRendering rendering =
        tokenizer->ApplyChatTemplate(one["messages"], one["add_generation_prompt"]);
    EXPECT_EQ(rendering.text, one["text"]);
    EXPECT_EQ(tokenizer->template_has_generation_blocks(), one.contains("spans"));
    if (one.contains("spans")) {
      EXPECT_EQ(nlohmann::ordered_json(rendering.generation_spans), one["spans"]);
    }
  }
}

TEST(ChatTemplates, TemplateComplains_ItsOwnSentenceComesOut) {
  const auto tokenizer = WithTemplate("{{ raise_exception('only ' + messages[0].role) }}");
  try {
    tokenizer->ApplyChatTemplate(json{{{"role", "user"}, {"content", "x"}}}, false);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadData);
    EXPECT_THAT(error.what(), HasSubstr("only user"));
  }
}

TEST(ChatTemplates, EndlessLoop_IsStopped) {
  const auto tokenizer = WithTemplate(
      "{% for a in range(9999) %}{% for b in range(9999) %}{{ '' }}{% endfor %}{% endfor %}");
  EXPECT_THROW(tokenizer->ApplyChatTemplate(json::array(), false), Error);
}

TEST(ChatTemplates, NoncharacterInMessage_IsRefusedWhereItWouldMatter) {
  const json messages = {{{"role", "assistant"}, {"content", "a\uFDD0b"}}};
  const auto marked = WithTemplate(ReadFile(kTestData / "templates/generation.jinja"));
  EXPECT_THROW(marked->ApplyChatTemplate(messages, false), Error);
  const auto plain = WithTemplate(ReadFile(kTestData / "templates/chatml.jinja"));
  EXPECT_THAT(plain->ApplyChatTemplate(messages, false).text, HasSubstr("a\uFDD0b"));
}

TEST(ChatTemplates, SyntaxError_IsABadModel) {
  try {
    WithTemplate("{% if %}");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadModel);
    EXPECT_THAT(error.what(), HasSubstr("chat template"));
  }
}

struct BrokenGguf {
  const char* name;
  const char* patch;  // merged into the metadata
  const char* message;
};

class BrokenGgufs : public testing::TestWithParam<BrokenGguf> {};

TEST_P(BrokenGgufs, Refused_WithASentence) {
  json metadata = ReadJson(kTestData / "gguf_smollm.json");
  metadata.merge_patch(json::parse(GetParam().patch));
  try {
    Tokenizer::FromGguf(metadata);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadModel);
    EXPECT_THAT(error.what(), HasSubstr(GetParam().message));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BrokenGgufs,
    testing::Values(
        BrokenGguf{"NoTokens", R"({"tokenizer.ggml.tokens": null})", "tokenizer"},
        BrokenGguf{"EmptyTokens", R"({"tokenizer.ggml.tokens": []})", "no tokenizer"},
        BrokenGguf{"TokensOfNumbers", R"({"tokenizer.ggml.tokens": [1]})", "malformed"},
        BrokenGguf{"UnknownKind", R"({"tokenizer.ggml.model": "bert"})", "\"bert\""},
        BrokenGguf{"EosOutside", R"({"tokenizer.ggml.eos_token_id": 99999})", "eos_token"},
        BrokenGguf{"MergeWithoutSpace", R"({"tokenizer.ggml.merges": ["ab"]})", "merge"},
        BrokenGguf{"MergeOfUnknown", R"({"tokenizer.ggml.merges": ["\u4e16 \u754c"]})", "merges"},
        BrokenGguf{"NoMergesNoScores", R"({"tokenizer.ggml.merges": null})", "scores"},
        BrokenGguf{"Template", R"({"tokenizer.chat_template": "{{ "})", "chat template"}),
    [](const auto& info) { return info.param.name; });

// Why the directory is refused.
std::string BadModelOf(const fs::path& directory) {
  try {
    Tokenizer::FromDirectory(directory.string());
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kBadModel);
    return error.what();
  }
  ADD_FAILURE() << directory << " was read";
  return "";
}

TEST(TokenizerDirectory, NoTokenizerJson_NamesTheRemedy) {
  TemporaryDirectory directory;
  EXPECT_FALSE(Tokenizer::IsIn(directory.path().string()));
  EXPECT_THAT(BadModelOf(directory.path()), HasSubstr("has no tokenizer.json"));
}

TEST(TokenizerDirectory, BrokenFiles_AreNamed) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "config.json"}) {
    TemporaryDirectory directory;
    fs::copy(kTestData / "byte_level", directory.path(), fs::copy_options::recursive);
    WriteFile(directory.path() / name, "{\"model\": ");
    EXPECT_THAT(BadModelOf(directory.path()), HasSubstr(name));
  }
}

TEST(TokenizerDirectory, BrokenTiktokenFiles_AreNamed) {
  const std::string whole = ReadFile(kTestData / "kimi" / "tiktoken.model");
  for (const auto& [text, fault] : std::vector<std::pair<std::string, std::string>>{
           {whole + "?? 9\n", "is no token in base64 and its rank"},
           {whole + "aGk= many\n", "is no token in base64 and its rank"},
           {whole.substr(whole.find('\n') + 1), "lacks the token of some byte"},
           {"", "lacks the token of some byte"}}) {
    TemporaryDirectory directory;
    fs::copy(kTestData / "kimi", directory.path(), fs::copy_options::recursive);
    WriteFile(directory.path() / "tiktoken.model", text);
    EXPECT_THAT(BadModelOf(directory.path()), AllOf(HasSubstr("tiktoken.model"), HasSubstr(fault)));
  }
  TemporaryDirectory directory;
  fs::copy(kTestData / "kimi", directory.path(), fs::copy_options::recursive);
  WriteFile(directory.path() / "tokenizer_config.json", R"({"tokenizer_class": "OwnTokenizer"})");
  EXPECT_THAT(BadModelOf(directory.path()),
              AllOf(HasSubstr("OwnTokenizer"), HasSubstr("save the tokenizer as tokenizer.json")));
}

TEST(TokenizerDirectory, BrokenSentencePieceModels_AreNamed) {
  const std::string whole = ReadFile(kTestData / "llama_spm" / "tokenizer.model");
  for (const auto& [bytes, fault] : std::vector<std::pair<std::string, std::string>>{
           {whole.substr(0, whole.size() - 3), "is no SentencePiece model that can be read"},
           {"no such thing", "is no SentencePiece model that can be read"},
           {"", "without pieces"},
           {std::string("\x0a\x03\x0a\x01") + "a", "another kind than BPE"}}) {
    TemporaryDirectory directory;
    fs::copy(kTestData / "llama_spm", directory.path(), fs::copy_options::recursive);
    WriteFile(directory.path() / "tokenizer.model", bytes);
    EXPECT_TRUE(Tokenizer::IsIn(directory.path().string()));
    EXPECT_THAT(BadModelOf(directory.path()),
                AllOf(HasSubstr("tokenizer.model"), HasSubstr(fault)));
  }
  // Only of Llama's class is it known what becomes of the prefix.
  TemporaryDirectory directory;
  fs::copy(kTestData / "llama_spm", directory.path(), fs::copy_options::recursive);
  WriteFile(directory.path() / "tokenizer_config.json", R"({"tokenizer_class": "OwnTokenizer"})");
  EXPECT_THAT(BadModelOf(directory.path()),
              AllOf(HasSubstr("OwnTokenizer"), HasSubstr("save the tokenizer as tokenizer.json")));
}

TEST(TokenizerDirectory, NamedTemplates_DefaultIsTaken) {
  TemporaryDirectory directory;
  fs::copy(kTestData / "byte_level", directory.path(), fs::copy_options::recursive);
  json config = ReadJson(directory.path() / "tokenizer_config.json");
  config["chat_template"] = {{{"name", "tool_use"}, {"template", "tools"}},
                             {{"name", "default"}, {"template", "plain"}}};
  WriteFile(directory.path() / "tokenizer_config.json", config.dump());
  const auto tokenizer = Tokenizer::FromDirectory(directory.path().string());
  EXPECT_EQ(tokenizer->ApplyChatTemplate(json::array(), false).text, "plain");
}

TEST(Tokenizer, IdsThatAreNone_AreRefused) {
  const auto tokenizer = OpenNamed("byte_level");
  EXPECT_THROW(tokenizer->Decode({-1}, false), Error);
  EXPECT_THROW(tokenizer->Encode("\xFF\xFE", false), Error);
}

TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(Sha256Of(""),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Of("abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  TemporaryDirectory directory;
  const std::string path = (directory.path() / "file").string();
  WriteFile(path, std::string(3'000'000, 'x'));
  EXPECT_EQ(Sha256OfFile(path), Sha256Of(std::string(3'000'000, 'x')));
  EXPECT_THROW(Sha256OfFile(path + ".none"), Error);
}

// The demo model itself, where its file is at hand.
TEST(DemoModel, AwkwardStrings_EqualTransformers) {
  const char* path = std::getenv("OFFSHOOT_DEMO_MODEL");
  if (path == nullptr) GTEST_SKIP() << "OFFSHOOT_DEMO_MODEL does not name the demo model's GGUF";
  const auto tokenizer = Tokenizer::Open(path);
  const json expected = ReadJson(kTestData / "demo_vectors.json");
  ExpectVectors(*tokenizer, expected);
  const json messages = {{{"role", "user"}, {"content", "Hi"}},
                         {{"role", "assistant"}, {"content", "Hello \u2014 \U0001F600!"}}};
  EXPECT_EQ(tokenizer->Encode(tokenizer->ApplyChatTemplate(messages, false).text, false),
            expected["chat"].get<std::vector<std::int64_t>>());
}

}  // namespace
}  // namespace offshoot::trainer
