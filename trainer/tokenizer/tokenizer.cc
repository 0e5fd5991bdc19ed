#include "trainer/tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <unordered_set>
#include <utility>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

// The C ABI of src/lib.rs, which documents it.
extern "C" {
struct OffshootBuffer {
  unsigned char* data;
  std::size_t size;
};
struct OffshootSlice {
  const unsigned char* data;
  std::size_t size;
};
void offshoot_buffer_free(OffshootBuffer buffer);
void* offshoot_tokenizer_open(OffshootSlice path, OffshootBuffer* error);
void* offshoot_tokenizer_from_gguf(OffshootSlice metadata, OffshootBuffer* error);
void offshoot_tokenizer_free(void* handle);
void offshoot_tokenizer_describe(const void* handle, OffshootBuffer* out);
bool offshoot_tokenizer_encode(const void* handle, OffshootSlice text, bool add_special_tokens,
                               OffshootBuffer* ids, OffshootBuffer* offsets, OffshootBuffer* error);
bool offshoot_tokenizer_decode(const void* handle, const std::uint32_t* ids, std::size_t count,
                               bool skip_special_tokens, OffshootBuffer* text,
                               OffshootBuffer* error);
bool offshoot_tokenizer_render(const void* handle, OffshootSlice messages,
                               bool add_generation_prompt, OffshootBuffer* text,
                               OffshootBuffer* spans, OffshootBuffer* error);
bool offshoot_tokenizer_save(const void* handle, OffshootSlice directory, OffshootBuffer* error);
bool offshoot_tokenizer_json(const void* handle, OffshootBuffer* out, OffshootBuffer* error);
bool offshoot_gguf_split_name(OffshootSlice patterns, OffshootBuffer* out, OffshootBuffer* error);
void offshoot_sha256(OffshootSlice data, OffshootBuffer* out);
bool offshoot_sha256_of_file(OffshootSlice path, OffshootBuffer* out, OffshootBuffer* error);
}

// Owns one buffer of the library.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { offshoot_buffer_free(buffer_); }

  OffshootBuffer* out() { return &buffer_; }
  std::string text() const {
    return std::string(reinterpret_cast<const char*>(buffer_.data), buffer_.size);
  }
  template <typename T>
  std::vector<T> numbers() const {
    std::vector<T> result(buffer_.size / sizeof(T));
    if (!result.empty()) std::memcpy(result.data(), buffer_.data, result.size() * sizeof(T));
    return result;
  }
  std::vector<std::pair<std::size_t, std::size_t>> ranges() const {
    const std::vector<std::uint64_t> flat = numbers<std::uint64_t>();
    std::vector<std::pair<std::size_t, std::size_t>> result;
    result.reserve(flat.size() / 2);
    for (std::size_t i = 0; i + 1 < flat.size(); i += 2) result.emplace_back(flat[i], flat[i + 1]);
    return result;
  }

 private:
  OffshootBuffer buffer_ = {nullptr, 0};
};

OffshootSlice SliceOf(const std::string& text) {
  return {reinterpret_cast<const unsigned char*>(text.data()), text.size()};
}

// The text of nlohmann::json; strings in it that are not UTF-8 are replaced, never thrown upon.
template <typename Json>
std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

struct Tokenizer::Impl {
  ~Impl() { offshoot_tokenizer_free(handle); }

  void Describe() {
    Buffer buffer;
    offshoot_tokenizer_describe(handle, buffer.out());
    const nlohmann::json facts = nlohmann::json::parse(buffer.text());
    const auto id = [&facts](const char* key) -> std::optional<std::int64_t> {
      if (facts.at(key).is_null()) return std::nullopt;
      return facts.at(key).get<std::int64_t>();
    };
    bos = id("bos_id");
    eos = id("eos_id");
    pad = id("pad_id");
    vocab_size = facts.at("vocab_size").get<std::int64_t>();
    for (const nlohmann::json& id : facts.at("special_ids")) {
      special_ids.insert(id.get<std::int64_t>());
    }
    has_chat_template = facts.at("has_chat_template").get<bool>();
    has_generation_blocks = facts.at("has_generation_blocks").get<bool>();
  }

  void* handle = nullptr;
  std::optional<std::int64_t> bos, eos, pad;
  std::int64_t vocab_size = 0;
  std::unordered_set<std::int64_t> special_ids;
  bool has_chat_template = false;
  bool has_generation_blocks = false;
};

Tokenizer::Tokenizer() : impl_(std::make_unique<Impl>()) {}
Tokenizer::~Tokenizer() = default;

bool Tokenizer::IsIn(const std::string& directory) {
  const std::filesystem::path folder(directory);
  return std::ranges::any_of(
      std::array{"tokenizer.json", "tiktoken.model", "hy.tiktoken", "tokenizer.model"},
      [&](const char* name) { return std::filesystem::exists(folder / name); });
}

std::unique_ptr<Tokenizer> Tokenizer::FromDirectory(const std::string& directory) {
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer);
  Buffer error;
  tokenizer->impl_->handle = offshoot_tokenizer_open(SliceOf(directory), error.out());
  if (tokenizer->impl_->handle == nullptr) throw Error(Reason::kBadModel, error.text());
  tokenizer->impl_->Describe();
  return tokenizer;
}

std::unique_ptr<Tokenizer> Tokenizer::FromGguf(const nlohmann::json& metadata) {
  nlohmann::json relevant = nlohmann::json::object();
  if (metadata.is_object()) {
    for (const auto& [key, value] : metadata.items()) {
      if (key.starts_with("tokenizer.")) relevant[key] = value;
    }
  }
  const std::string text = Dump(relevant);
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer);
  Buffer error;
  tokenizer->impl_->handle = offshoot_tokenizer_from_gguf(SliceOf(text), error.out());
  if (tokenizer->impl_->handle == nullptr) throw Error(Reason::kBadModel, error.text());
  tokenizer->impl_->Describe();
  return tokenizer;
}

std::vector<std::int64_t> Tokenizer::Encode(const std::string& text,
                                            bool add_special_tokens) const {
  Buffer ids, error;
  if (!offshoot_tokenizer_encode(impl_->handle, SliceOf(text), add_special_tokens, ids.out(),
                                 nullptr, error.out())) {
    throw Error(Reason::kBadData, error.text());
  }
  const std::vector<std::uint32_t> narrow = ids.numbers<std::uint32_t>();
  return {narrow.begin(), narrow.end()};
}

Tokenizer::Encoding Tokenizer::EncodeWithOffsets(const std::string& text,
                                                 bool add_special_tokens) const {
  Buffer ids, offsets, error;
  if (!offshoot_tokenizer_encode(impl_->handle, SliceOf(text), add_special_tokens, ids.out(),
                                 offsets.out(), error.out())) {
    throw Error(Reason::kBadData, error.text());
  }
  const std::vector<std::uint32_t> narrow = ids.numbers<std::uint32_t>();
  return {{narrow.begin(), narrow.end()}, offsets.ranges()};
}

std::string Tokenizer::Decode(const std::vector<std::int64_t>& ids,
                              bool skip_special_tokens) const {
  std::vector<std::uint32_t> narrow;
  narrow.reserve(ids.size());
  for (const std::int64_t id : ids) {
    if (id < 0 || id > UINT32_MAX) {
      throw Error(Reason::kBadData, "token id " + std::to_string(id) + " cannot be decoded");
    }
    narrow.push_back(static_cast<std::uint32_t>(id));
  }
  Buffer text, error;
  if (!offshoot_tokenizer_decode(impl_->handle, narrow.data(), narrow.size(), skip_special_tokens,
                                 text.out(), error.out())) {
    throw Error(Reason::kBadData, error.text());
  }
  return text.text();
}

bool Tokenizer::has_chat_template() const { return impl_->has_chat_template; }
bool Tokenizer::template_has_generation_blocks() const { return impl_->has_generation_blocks; }

ChatRendering Tokenizer::ApplyChatTemplate(const nlohmann::ordered_json& messages,
                                           bool add_generation_prompt) const {
  return Render(Dump(messages), add_generation_prompt);
}

ChatRendering Tokenizer::ApplyChatTemplate(const nlohmann::json& messages,
                                           bool add_generation_prompt) const {
  return Render(Dump(messages), add_generation_prompt);
}

ChatRendering Tokenizer::Render(const std::string& messages, bool add_generation_prompt) const {
  Buffer text, spans, error;
  if (!offshoot_tokenizer_render(impl_->handle, SliceOf(messages), add_generation_prompt,
                                 text.out(), spans.out(), error.out())) {
    throw Error(Reason::kBadData, error.text());
  }
  return {text.text(), spans.ranges()};
}

std::optional<std::int64_t> Tokenizer::bos_id() const { return impl_->bos; }
std::optional<std::int64_t> Tokenizer::eos_id() const { return impl_->eos; }
std::optional<std::int64_t> Tokenizer::pad_id() const { return impl_->pad; }
std::int64_t Tokenizer::vocab_size() const { return impl_->vocab_size; }
bool Tokenizer::IsSpecial(std::int64_t id) const { return impl_->special_ids.contains(id); }

void Tokenizer::Save(const std::string& directory) const {
  std::error_code code;
  std::filesystem::create_directories(directory, code);
  if (code) {
    throw Error(Reason::kDiskFull, directory + " cannot be made: " + code.message());
  }
  Buffer error;
  if (!offshoot_tokenizer_save(impl_->handle, SliceOf(directory), error.out())) {
    throw Error(Reason::kDiskFull, error.text());
  }
}

std::string Tokenizer::Json() const {
  Buffer text, error;
  if (!offshoot_tokenizer_json(impl_->handle, text.out(), error.out())) {
    throw Error(Reason::kBadModel, error.text());
  }
  return text.text();
}

std::string GgufSplitName(const std::vector<std::string>& patterns) {
  Buffer name, error;
  if (!offshoot_gguf_split_name(SliceOf(Dump(nlohmann::json(patterns))), name.out(), error.out())) {
    throw Error(Reason::kBadModel, error.text());
  }
  return name.text();
}

std::string Sha256OfFile(const std::string& path) {
  Buffer digest, error;
  if (!offshoot_sha256_of_file(SliceOf(path), digest.out(), error.out())) {
    throw Error(Reason::kBadData, error.text());
  }
  return digest.text();
}

std::string Sha256Of(const std::string& data) {
  Buffer digest;
  offshoot_sha256(SliceOf(data), digest.out());
  return digest.text();
}

}  // namespace offshoot::trainer
