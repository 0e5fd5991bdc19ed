// Tokens and chat templates, through the Hugging Face `tokenizers` crate and `minijinja` behind a
// small C ABI (trainer/tokenizer/src/lib.rs), so that ids equal Hugging Face's byte for byte.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace offshoot::trainer {

struct ChatRendering {
  std::string text;
  // Byte ranges [begin, end) of text inside {% generation %} blocks; empty if the template has
  // none.
  std::vector<std::pair<std::size_t, std::size_t>> generation_spans;
};

// Immutable; thread-safe.
class Tokenizer {
 public:
  // A Hugging Face directory (tokenizer.json, tokenizer_config.json, chat_template.jinja or .json,
  // special_tokens_map.json); instead of tokenizer.json, Kimi K2's tiktoken.model, Hunyuan's
  // hy.tiktoken or SentencePiece's tokenizer.model. Throws Error(kBadModel).
  static std::unique_ptr<Tokenizer> FromDirectory(const std::string& directory);
  // The `tokenizer.*` metadata of a GGUF file (gpt2 and llama models).
  static std::unique_ptr<Tokenizer> FromGguf(const nlohmann::json& metadata);
  // Whether FromDirectory finds one there, by the names that src/directory.rs, src/tiktoken.rs and
  // src/sentencepiece.rs look for.
  static bool IsIn(const std::string& directory);
  // FromDirectory or FromGguf by what path is.
  static std::unique_ptr<Tokenizer> Open(const std::string& path);
  ~Tokenizer();

  // add_special_tokens: as the tokenizer's post-processor would (BOS and the like).
  std::vector<std::int64_t> Encode(const std::string& text, bool add_special_tokens) const;
  struct Encoding {
    std::vector<std::int64_t> ids;
    std::vector<std::pair<std::size_t, std::size_t>> byte_offsets;  // of each token in the text
  };
  Encoding EncodeWithOffsets(const std::string& text, bool add_special_tokens) const;
  std::string Decode(const std::vector<std::int64_t>& ids, bool skip_special_tokens) const;

  bool has_chat_template() const;
  bool template_has_generation_blocks() const;
  // messages: [{"role", "content", ...}]. Throws Error(kBadData) with the template's own complaint.
  // ordered_json keeps the order of keys, which templates see when they write a message or a tool
  // call as JSON; nlohmann::json sorts them.
  ChatRendering ApplyChatTemplate(const nlohmann::ordered_json& messages,
                                  bool add_generation_prompt) const;
  ChatRendering ApplyChatTemplate(const nlohmann::json& messages, bool add_generation_prompt) const;

  std::optional<std::int64_t> bos_id() const;
  std::optional<std::int64_t> eos_id() const;
  std::optional<std::int64_t> pad_id() const;
  std::int64_t vocab_size() const;  // with added tokens
  // True for tokens that mark structure (BOS, end of turn, ...), never text.
  bool IsSpecial(std::int64_t id) const;

  // Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja
  // as transformers reads them (copied if they are there, else made).
  void Save(const std::string& directory) const;
  // What tokenizer.json says of it.
  std::string Json() const;

 private:
  Tokenizer();
  ChatRendering Render(const std::string& messages, bool add_generation_prompt) const;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// llama.cpp's name (`tokenizer.ggml.pre`) of the regular expressions that cut text into words, one
// after the other; empty if it has none.
std::string GgufSplitName(const std::vector<std::string>& patterns);

// SHA-256 of a file's bytes or of a string, as "sha256:<hex>" (the `sha2` crate, same library).
std::string Sha256OfFile(const std::string& path);
std::string Sha256Of(const std::string& data);

}  // namespace offshoot::trainer
