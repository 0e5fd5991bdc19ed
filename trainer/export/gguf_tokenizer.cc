#include "trainer/export/gguf_tokenizer.h"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainer/error.h"
#include "trainer/weights/mapped_file.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxTokenizerBytes = std::size_t{256} << 20;

// gguf.TokenType
constexpr std::int32_t kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5;

[[noreturn]] void Refuse(const BaseModelFiles& base, const std::string& fault) {
  throw Error(Reason::kBadModel, base.path + "/tokenizer.json: " + fault +
                                     ", which GGUF has no word for; publish the merged model "
                                     "instead.");
}

Json ReadJson(const std::string& path) {
  Json value = Json::parse(ReadSmallFile(path, kMaxTokenizerBytes), nullptr, false);
  if (!value.is_object()) throw Error(Reason::kBadModel, path + ": is not a JSON object.");
  return value;
}

std::string TypeOf(const Json& part) {
  return part.is_object() ? part.value("type", std::string()) : std::string();
}

// llama.cpp's name of the way text is split before BPE.
std::string SplittingOf(const BaseModelFiles& base, const Json& tokenizer) {
  const std::string words = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)";
  const std::string rest = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const Json& splitting = tokenizer.at("pre_tokenizer");
  if (TypeOf(splitting) == "ByteLevel" && splitting.value("use_regex", true)) return "gpt-2";
  if (TypeOf(splitting) == "Sequence" && splitting.at("pretokenizers").size() == 2) {
    const Json& first = splitting["pretokenizers"][0];
    const Json& second = splitting["pretokenizers"][1];
    if (TypeOf(second) == "ByteLevel") {
      if (TypeOf(first) == "Digits" && first.value("individual_digits", false) &&
          second.value("use_regex", true)) {
        return "smollm";
      }
      const bool plain_split = TypeOf(first) == "Split" && first.contains("pattern") &&
                               first["pattern"].is_object() && !second.value("use_regex", true);
      const std::string pattern =
          plain_split ? first["pattern"].value("Regex", std::string()) : std::string();
      if (pattern == words + R"(\p{N}{1,3})" + rest) return "llama-bpe";
      if (pattern == words + R"(\p{N})" + rest) return "qwen2";
    }
  }
  Refuse(base, "splits text in a way of its own");
}

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<std::int32_t> types;
};

Vocabulary VocabularyOf(const BaseModelFiles& base, const Json& tokenizer,
                        std::int64_t vocab_size) {
  Vocabulary vocabulary;
  for (std::int64_t i = 0; i < vocab_size; ++i) {
    vocabulary.tokens.push_back("[PAD" + std::to_string(i) + "]");
    vocabulary.types.push_back(kUnused);
  }
  const auto place = [&](const std::string& token, const Json& id, std::int32_t type) {
    if (!id.is_number_integer() || id < 0 || id >= vocab_size) {
      throw Error(Reason::kBadModel,
                  base.path + "/tokenizer.json: the token '" + token + "' has the id " + id.dump() +
                      ", and the model knows 0 to " + std::to_string(vocab_size - 1) + ".");
    }
    const auto at = id.get<std::size_t>();
    vocabulary.tokens[at] = token;
    vocabulary.types[at] = type;
  };
  for (const auto& [token, id] : tokenizer.at("model").at("vocab").items()) {
    place(token, id, kNormal);
  }
  for (const Json& added : tokenizer.value("added_tokens", Json::array())) {
    place(added.at("content"), added.at("id"),
          added.value("special", false) ? kControl : kUserDefined);
  }
  return vocabulary;
}

std::vector<std::string> MergesOf(const Json& tokenizer) {
  std::vector<std::string> merges;
  for (const Json& merge : tokenizer.at("model").at("merges")) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>());
  }
  return merges;
}

std::optional<std::string> ChatTemplateOf(const BaseModelFiles& base) {
  const std::string file = base.path + "/chat_template.jinja";
  if (std::filesystem::exists(file)) return ReadSmallFile(file, kMaxTokenizerBytes);
  const std::string config = base.path + "/tokenizer_config.json";
  if (!std::filesystem::exists(config)) return std::nullopt;
  const Json json = ReadJson(config);
  const auto found = json.find("chat_template");
  if (found == json.end() || !found->is_string()) return std::nullopt;
  return found->get<std::string>();
}

void AddFromDirectory(const BaseModelFiles& base, const Tokenizer& tokenizer,
                      std::int64_t vocab_size, GgufMetadata& metadata) {
  const Json json = ReadJson(base.path + "/tokenizer.json");
  if (TypeOf(json.value("model", Json())) != "BPE" || json["model"].value("byte_fallback", false)) {
    Refuse(base, "is no byte-level BPE");
  }
  metadata.Text("tokenizer.ggml.model", "gpt2");
  metadata.Text("tokenizer.ggml.pre", SplittingOf(base, json));
  const Vocabulary vocabulary = VocabularyOf(base, json, vocab_size);
  metadata.Texts("tokenizer.ggml.tokens", vocabulary.tokens);
  metadata.Int32s("tokenizer.ggml.token_type", vocabulary.types);
  metadata.Texts("tokenizer.ggml.merges", MergesOf(json));
  const auto add_id = [&](const char* key, std::optional<std::int64_t> id) {
    if (id) metadata.Uint32(key, static_cast<std::uint32_t>(*id));
  };
  add_id("tokenizer.ggml.bos_token_id", tokenizer.bos_id());
  add_id("tokenizer.ggml.eos_token_id", tokenizer.eos_id());
  add_id("tokenizer.ggml.padding_token_id", tokenizer.pad_id());
  // What the tokenizer puts around a text says whether llama.cpp shall.
  const std::vector<std::int64_t> dressed = tokenizer.Encode("a", true);
  const auto is = [](std::int64_t id, std::optional<std::int64_t> special) {
    return special && *special == id;
  };
  metadata.Bool("tokenizer.ggml.add_bos_token",
                !dressed.empty() && is(dressed.front(), tokenizer.bos_id()));
  metadata.Bool("tokenizer.ggml.add_eos_token",
                !dressed.empty() && is(dressed.back(), tokenizer.eos_id()));
  if (const auto chat = ChatTemplateOf(base)) metadata.Text("tokenizer.chat_template", *chat);
}

}  // namespace

void AddTokenizer(const BaseModelFiles& base, const Tokenizer& tokenizer, std::int64_t vocab_size,
                  GgufMetadata& metadata) {
  if (!base.is_gguf) {
    try {
      AddFromDirectory(base, tokenizer, vocab_size, metadata);
    } catch (const Json::exception& error) {
      throw Error(Reason::kBadModel,
                  base.path + "/tokenizer.json: is malformed: " + error.what() + ".");
    }
    return;
  }
  for (const auto& [key, value] : base.gguf_metadata.items()) {
    if (!key.starts_with("tokenizer.")) continue;
    if (!metadata.Value(key, value)) {
      throw Error(Reason::kBadModel,
                  base.path + ": the value of '" + key + "' cannot be written again.");
    }
  }
}

}  // namespace offshoot::trainer
