// The header of a safetensors file, checked before anything is believed
// (https://github.com/huggingface/safetensors#format). Pure; thread-safe.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

struct SafetensorsEntry {
  TensorInfo info;
  at::ScalarType dtype = at::kFloat;
  std::uint64_t begin = 0;  // bytes from the file's start, not from the data section's
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsEntry> entries;  // in name order
};

// The format's own bound, which the reference implementation shares.
constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
constexpr std::size_t kMaxTensorRank = 16;

// `name` is the file's, for messages. Throws Error(kBadModel): a file cut short, an implausible
// header size, JSON that is not a safetensors header, an unknown dtype, a shape that does not match
// its bytes, ranges that overlap, leave a hole or lie outside the file, a name that occurs twice.
SafetensorsHeader ParseSafetensorsHeader(const std::uint8_t* data, std::size_t size_bytes,
                                         const std::string& name);

// "F32" and the like. Throws Error(kInternal) for a dtype that the format has no name for.
std::string SafetensorsDtypeName(at::ScalarType dtype);

}  // namespace offshoot::trainer
