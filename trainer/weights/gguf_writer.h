// Writing GGUF version 3: typed metadata, then tensors one at a time, durably.
//
// Belongs to one thread. Errors: Error(kDiskFull) or Error(kInternal) naming the path.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/weights/ggml_types.h"

namespace offshoot::trainer {

// Keys in the order they were added.
class GgufMetadata {
 public:
  void Text(const std::string& key, const std::string& value);
  void Uint32(const std::string& key, std::uint32_t value);
  void Float32(const std::string& key, float value);
  void Bool(const std::string& key, bool value);
  void Texts(const std::string& key, const std::vector<std::string>& values);
  void Int32s(const std::string& key, const std::vector<std::int32_t>& values);
  void Float32s(const std::string& key, const std::vector<float>& values);
  // A value that ParseGguf read: whole numbers become uint32 (int32 in lists), others float32.
  // Returns false, adding nothing, for what the others cannot hold.
  bool Value(const std::string& key, const nlohmann::json& value);

  const std::string& bytes() const { return bytes_; }
  std::uint64_t count() const { return count_; }

 private:
  void Key(const std::string& key, std::uint32_t type);
  std::string bytes_;
  std::uint64_t count_ = 0;
};

struct GgufSlot {
  std::string name;
  std::vector<std::int64_t> shape;  // outermost first
  const GgmlType* type = nullptr;   // with a quantise function
};

class GgufWriter {
 public:
  GgufWriter(const std::string& path, const GgufMetadata& metadata, std::vector<GgufSlot> slots);
  ~GgufWriter();  // without Finish nothing is left
  // float32, of the slot's shape, on the CPU; quantised on at::parallel_for's threads.
  void Write(std::size_t slot, const at::Tensor& values);
  // The same of one of the shape[0] parts of a slot; each is to be written once.
  void WritePart(std::size_t slot, std::int64_t part, const at::Tensor& values);
  // The same of rows of a matrix from `first` on.
  void WriteRows(std::size_t slot, std::int64_t first, const at::Tensor& values);
  void Finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace offshoot::trainer
