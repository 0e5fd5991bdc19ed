#include "trainer/export/gguf_tokenizer.h"

#include <filesystem>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "trainer/error.h"
#include "trainer/weights/mapped_file.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxTokenizerBytes = std::size_t{256} << 20;

// gguf.TokenType
constexpr std::int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5,
                       kByte = 6;

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
  const Json& splitting = tokenizer.at("pre_tokenizer");
  if (TypeOf(splitting) == "ByteLevel" && splitting.value("use_regex", true)) return "gpt-2";
  const Json parts =
      TypeOf(splitting) == "Sequence" ? splitting.at("pretokenizers") : Json::array();
  if (parts.size() >= 2 && TypeOf(parts.back()) == "ByteLevel") {
    const bool by_bytes_alone = !parts.back().value("use_regex", true);
    if (parts.size() == 2 && TypeOf(parts[0]) == "Digits" &&
        parts[0].value("individual_digits", false) && !by_bytes_alone) {
      return "smollm";
    }
    std::vector<std::string> patterns;
    for (std::size_t i = 0; i + 1 < parts.size() && TypeOf(parts[i]) == "Split"; ++i) {
      patterns.push_back(parts[i].at("pattern").value("Regex", std::string()));
    }
    const std::string name = GgufSplitName(patterns);
    if (!name.empty() && by_bytes_alone) return name;
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

// "left right" each.
std::vector<std::string> MergesOf(const Json& tokenizer) {
  std::vector<std::string> merges;
  for (const Json& merge : tokenizer.at("model").at("merges")) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>());
  }
  return merges;
}

bool IsByteToken(const std::string& token) {
  return token.size() == 6 && token.starts_with("<0x") && token.back() == '>';
}

// SentencePiece has a score for each token instead of merges: of two pieces that may become one,
// the one with the better score is made first. The place of a token's first merge is such a score,
// if every pair of pieces that makes a token is a merge.
std::vector<float> ScoresOf(const BaseModelFiles& base, const Json& tokenizer,
                            const Vocabulary& vocabulary) {
  const std::vector<std::string> merges = MergesOf(tokenizer);
  const std::unordered_set<std::string> merged(merges.begin(), merges.end());
  const Json& ids = tokenizer.at("model").at("vocab");
  std::vector<float> scores(vocabulary.tokens.size(), 0);
  for (std::size_t i = merges.size(); i-- > 0;) {
    std::string text = merges[i];
    text.erase(text.find(' '), 1);
    scores.at(ids.at(text).get<std::size_t>()) = -static_cast<float>(i);
  }
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const std::string& token = vocabulary.tokens[id];
    if (vocabulary.types[id] != kNormal) continue;
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      const bool inside_character = (static_cast<unsigned char>(token[cut]) & 0xC0) == 0x80;
      const std::string left = token.substr(0, cut), right = token.substr(cut);
      if (!inside_character && ids.contains(left) && ids.contains(right) &&
          !merged.contains(left + " " + right)) {
        Refuse(base, "makes '" + token + "' of some pieces and not of '" + left + "' and '" +
                         right + "'");
      }
    }
  }
  return scores;
}

// Spaces as U+2581, one of them before a text perhaps, and nothing else done to it.
void CheckPieces(const BaseModelFiles& base, const Json& tokenizer) {
  const Json normalizer = tokenizer.value("normalizer", Json());
  const Json steps = TypeOf(normalizer) == "Sequence" ? normalizer.at("normalizers")
                     : normalizer.is_null()           ? Json::array()
                                                      : Json::array({normalizer});
  for (const Json& step : steps) {
    if (TypeOf(step) != "Prepend" && TypeOf(step) != "Replace") {
      Refuse(base, "normalises text by " + TypeOf(step));
    }
  }
  const Json splitting = tokenizer.value("pre_tokenizer", Json());
  if (!splitting.is_null() && TypeOf(splitting) != "Metaspace") {
    Refuse(base, "splits text in a way of its own");
  }
}

void AddSentencePiece(const BaseModelFiles& base, const Json& json, const Tokenizer& tokenizer,
                      Vocabulary vocabulary, GgufMetadata& metadata) {
  CheckPieces(base, json);
  const Json unknown = json.at("model").value("unk_token", Json());
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (IsByteToken(vocabulary.tokens[id])) vocabulary.types[id] = kByte;
    if (vocabulary.tokens[id] == unknown) {
      vocabulary.types[id] = kUnknown;
      metadata.Uint32("tokenizer.ggml.unknown_token_id", static_cast<std::uint32_t>(id));
    }
  }
  metadata.Text("tokenizer.ggml.model", "llama");
  metadata.Text("tokenizer.ggml.pre", "default");
  metadata.Texts("tokenizer.ggml.tokens", vocabulary.tokens);
  metadata.Float32s("tokenizer.ggml.scores", ScoresOf(base, json, vocabulary));
  metadata.Int32s("tokenizer.ggml.token_type", vocabulary.types);
  const std::vector<std::int64_t> letter = tokenizer.Encode("a", false);
  metadata.Bool(
      "tokenizer.ggml.add_space_prefix",
      !letter.empty() &&
          vocabulary.tokens.at(static_cast<std::size_t>(letter.front())).starts_with("\u2581"));
}

void AddByteLevel(const BaseModelFiles& base, const Json& json, const Vocabulary& vocabulary,
                  GgufMetadata& metadata) {
  metadata.Text("tokenizer.ggml.model", "gpt2");
  metadata.Text("tokenizer.ggml.pre", SplittingOf(base, json));
  metadata.Texts("tokenizer.ggml.tokens", vocabulary.tokens);
  metadata.Int32s("tokenizer.ggml.token_type", vocabulary.types);
  metadata.Texts("tokenizer.ggml.merges", MergesOf(json));
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
  const std::string file = base.path + "/tokenizer.json";
  const Json json = std::filesystem::exists(file) ? ReadJson(file) : Json::parse(tokenizer.Json());
  if (TypeOf(json.value("model", Json())) != "BPE") Refuse(base, "is no BPE");
  const Vocabulary vocabulary = VocabularyOf(base, json, vocab_size);
  if (json["model"].value("byte_fallback", false)) {
    AddSentencePiece(base, json, tokenizer, vocabulary, metadata);
  } else {
    AddByteLevel(base, json, vocabulary, metadata);
  }
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
