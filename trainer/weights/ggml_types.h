// ggml's tensor types: block sizes and dequantisation to float32, equal bit for bit to the `gguf`
// Python package's (gguf/quants.py), whose layouts these are. Pure; thread-safe.
#pragma once

#include <cstdint>

namespace offshoot::trainer {

struct GgmlType {
  std::uint32_t id = 0;  // in the file
  const char* name = "";
  std::int64_t block_elements = 1;
  std::int64_t block_bytes = 0;
  // Reads `blocks` blocks of block_bytes, writes blocks * block_elements floats. Null: the type is
  // known by name but not read.
  void (*dequantise)(const std::uint8_t* data, std::int64_t blocks, float* out) = nullptr;
  // The other way, as gguf.quants.quantize does. Null: the type is not written.
  void (*quantise)(const float* in, std::int64_t blocks, std::uint8_t* data) = nullptr;
};

// Null for an id that ggml has not given out.
const GgmlType* FindGgmlType(std::uint32_t id);
const GgmlType* FindGgmlType(const char* name);

// "F32, F16, ...": the types that have a dequantisation.
const char* ReadableGgmlTypes();

// Packs `count` floats as bfloat16, to nearest even. NaN stays NaN.
void PackBfloat16(const float* in, std::int64_t count, std::uint16_t* out);

}  // namespace offshoot::trainer
