// Hand-made safetensors and GGUF bytes, for the tests.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "trainer/testing.h"

namespace offshoot::trainer {

inline void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// `value` as sizeof(T) little-endian bytes.
template <typename T>
std::string Bytes(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(T));
}

// A safetensors file of this header text and so many zero bytes of data.
inline std::string SafetensorsBytes(const std::string& header, std::size_t data_bytes) {
  return Bytes<std::uint64_t>(header.size()) + header + std::string(data_bytes, '\0');
}

// Builds a GGUF file field by field.
class GgufBuilder {
 public:
  static std::string Text(const std::string& text) {
    return Bytes<std::uint64_t>(text.size()) + text;
  }
  GgufBuilder& Key(const std::string& name, std::uint32_t type, const std::string& value) {
    keys_ += Text(name) + Bytes(type) + value;
    ++key_count_;
    return *this;
  }
  GgufBuilder& String(const std::string& name, const std::string& value) {
    return Key(name, 8, Text(value));
  }
  GgufBuilder& Uint32(const std::string& name, std::uint32_t value) {
    return Key(name, 4, Bytes(value));
  }
  GgufBuilder& Float32(const std::string& name, float value) { return Key(name, 6, Bytes(value)); }
  // Innermost dimension first, as the format has it.
  GgufBuilder& Tensor(const std::string& name, const std::vector<std::uint64_t>& dimensions,
                      std::uint32_t type, std::uint64_t offset) {
    tensors_ += Text(name) + Bytes<std::uint32_t>(dimensions.size());
    for (const std::uint64_t dimension : dimensions) tensors_ += Bytes(dimension);
    tensors_ += Bytes(type) + Bytes(offset);
    ++tensor_count_;
    return *this;
  }
  std::string Build(const std::string& data, std::uint32_t version = 3) const {
    std::string bytes =
        "GGUF" + Bytes(version) + Bytes(tensor_count_) + Bytes(key_count_) + keys_ + tensors_;
    bytes.resize((bytes.size() + 31) / 32 * 32);
    return bytes + data;
  }

 private:
  std::string keys_;
  std::string tensors_;
  std::uint64_t key_count_ = 0;
  std::uint64_t tensor_count_ = 0;
};

}  // namespace offshoot::trainer
