// Where a model's tensors come from: safetensors files or a GGUF file, under one face. Families
// see only Hugging Face tensor names and Hugging Face config keys.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace offshoot::trainer {

struct TensorInfo {
  std::string name;  // Hugging Face name, e.g. model.layers.0.self_attn.q_proj.weight
  std::vector<std::int64_t> shape;
  std::string stored_type;  // F32, BF16, F8_E4M3, Q4_K, ...
};

// Gives back the pages of bytes [begin, end) of a tensor that lies in a mapped file; they are read
// again when they are touched again. Thread-safe.
using PageRelease = std::function<void(std::size_t begin, std::size_t end)>;

// Thread-safe: reads from mappings only.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual std::vector<TensorInfo> List() const = 0;
  virtual const TensorInfo* Find(const std::string& name) const = 0;  // null if absent
  // The tensor in the wanted dtype. If it is stored so, the result shares the mapping (read-only);
  // else it is converted, this tensor alone. Throws Error(kBadModel) naming the file and tensor.
  virtual at::Tensor Load(const std::string& name, at::ScalarType dtype) const = 0;
  // Gives the memory of a tensor's pages back; a later use reads them again. Never a fault.
  virtual void Release(const std::string& name) const = 0;
  // The same for parts of a tensor that Load(name, dtype) shares with the mapping; empty where it
  // does not. Outlives the source.
  virtual PageRelease ReleaseOf(const std::string& name, at::ScalarType dtype) const = 0;
};

// A base model on disk: a Hugging Face directory or one GGUF file.
struct BaseModelFiles {
  nlohmann::json config;             // config.json; made from the metadata for a GGUF file
  nlohmann::json generation_config;  // null if there is none
  std::unique_ptr<TensorSource> tensors;
  std::string path;
  bool is_gguf = false;
  nlohmann::json gguf_metadata;  // tokenizer.* keys and all others; null for a directory
};

// Throws Error(kBadModel): no such path, neither kind, corrupt or truncated file (with what is
// wrong where), missing config.json. Headers are bounded before anything is allocated by their
// word.
BaseModelFiles OpenBaseModel(const std::string& path);

}  // namespace offshoot::trainer
