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

class MappedFile;

// One file, mapped. Throws Error(kBadModel) naming the file and what is wrong. Thread-safe.
class SafetensorsFile {
 public:
  static std::shared_ptr<const SafetensorsFile> Open(const std::string& path);
  ~SafetensorsFile();
  const std::map<std::string, std::string>& metadata() const;
  const std::vector<TensorInfo>& tensors() const;  // in name order
  bool Has(const std::string& name) const;
  const TensorInfo* Find(const std::string& name) const;  // null if absent
  // Shares the mapping, dtype as stored. Keeps the file mapped while the tensor lives. The memory
  // is read-only: an in-place operation on the tensor is a crash. Throws Error(kBadModel) if
  // absent.
  at::Tensor Get(const std::string& name) const;
  // Gives the tensor's pages back after it was converted; a later use reads them again.
  void Release(const std::string& name) const;
  // The same for the tensor's first bytes alone.
  void Release(const std::string& name, std::size_t first_bytes) const;
  // The same for any part of it; empty if it is absent, not of this dtype, or copied by Get.
  PageRelease ReleaseOf(const std::string& name, at::ScalarType dtype) const;

 private:
  SafetensorsFile();
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// A tensor yet to be written.
struct SafetensorsSlot {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<std::int64_t> shape;
};

// Writes a file whose layout is known before its tensors are, one tensor in memory at a time:
// path.tmp, synced, renamed by Finish. The data section begins on a 64-byte boundary; wider dtypes
// come first, then names in order, so that every tensor is aligned and none is padded (the format
// allows no holes). One thread. Throws Error(kDiskFull) or Error(kInternal) naming the path.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsSlot> slots,
                    const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();  // without Finish nothing is left
  // Each slot once, in any order. Any device, any layout; dtype and shape as declared.
  void Write(const std::string& name, const at::Tensor& tensor);
  // The tensor's next rows (of its first dimension), where they never all stand in memory.
  void Append(const std::string& name, const at::Tensor& rows);
  void Finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The same for tensors at hand.
void WriteSafetensors(const std::string& path, const std::map<std::string, at::Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace offshoot::trainer
