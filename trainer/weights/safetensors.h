// The safetensors format (https://github.com/huggingface/safetensors#format): reading by mapping,
// writing sorted and durably.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

// One file, mapped. Throws Error(kBadModel) naming the file and what is wrong.
class SafetensorsFile {
 public:
  static std::shared_ptr<const SafetensorsFile> Open(const std::string& path);
  ~SafetensorsFile();
  const std::map<std::string, std::string>& metadata() const;
  const std::vector<TensorInfo>& tensors() const;
  bool Has(const std::string& name) const;
  // Shares the mapping, dtype as stored. Keeps the file mapped while the tensor lives.
  at::Tensor Get(const std::string& name) const;

 private:
  SafetensorsFile();
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// Writes path.tmp, syncs, renames. Tensors in name order, data aligned to 64 bytes. Any device, any
// contiguous or strided layout. Throws Error(kDiskFull) naming the path.
void WriteSafetensors(const std::string& path, const std::map<std::string, at::Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace offshoot::trainer
