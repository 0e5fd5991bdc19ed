// The GGUF format, versions 2 and 3, little-endian
// (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata and the places of tensors.
// Every count and length is checked against what is left of the file before anything is allocated
// by its word. Parsed values are immutable; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/weights/ggml_types.h"
#include "trainer/weights/mapped_file.h"

namespace offshoot::trainer {

struct GgufTensor {
  std::string name;                 // the file's, e.g. blk.0.attn_q.weight
  std::vector<std::int64_t> shape;  // outermost first, as Hugging Face writes it
  const GgmlType* type = nullptr;
  std::uint64_t begin = 0;  // bytes from the file's start
  std::uint64_t end = 0;
};

struct GgufLayout {
  nlohmann::json metadata;  // an object: key -> number, boolean, string or array of these
  std::vector<GgufTensor> tensors;
};

// `name` is the file's, for messages. Throws Error(kBadModel): no GGUF file, another version or
// byte order, a file cut short, an absurd count or length, a key or tensor that occurs twice, a
// type or shape that cannot be, tensors that overlap or lie outside the file.
GgufLayout ParseGguf(const std::uint8_t* data, std::size_t size_bytes, const std::string& name);

struct GgufFile {
  std::shared_ptr<const MappedFile> file;
  GgufLayout layout;
};

GgufFile OpenGguf(const std::string& path);

}  // namespace offshoot::trainer
