// Hands the decoder's parts their weights, tensor by tensor, and finds every fault of a checkpoint
// at once. Parts are built twice with it: first with kCheck, which reads no weight and collects
// what is missing or mis-shaped, then with kLoad. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "trainer/models/decoder.h"
#include "trainer/models/forward_context.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

class ModuleLoader {
 public:
  enum class Mode { kCheck, kLoad };
  ModuleLoader(const TensorSource& source, const DecoderOptions& options, Mode mode);

  bool loading() const { return mode_ == Mode::kLoad; }
  bool Has(const std::string& name) const { return shapes_.contains(name); }

  // The tensor in the decoder's dtype on its device; undefined when checking or at fault.
  at::Tensor Tensor(const std::string& name, const std::vector<std::int64_t>& shape);
  // The same in float32 (routers that stay in it).
  at::Tensor FloatTensor(const std::string& name, const std::vector<std::int64_t>& shape);

  // Of a quantised or passing base on a CPU: what gives back pages of Tensor(name), where it lies
  // in a mapped file. It can then pass through memory instead of staying in it.
  PageRelease ReleaseOf(const std::string& name) const;

  // `count` float32 values stored as [count] or [1, count].
  at::Tensor FloatVector(const std::string& name, std::int64_t count);

  struct LinearShape {
    std::int64_t in_features;
    std::int64_t out_features;
    bool bias = false;
  };
  // path.weight (and path.bias), registered as a module that LoRA can target.
  Projection Linear(const std::string& path, const LinearShape& shape, ModuleGroup group);
  // A registered module whose weight is part of a larger tensor. It passes through memory if it is
  // not quantised and something gives its pages back.
  Projection Register(const std::string& path, const LinearShape& shape, ModuleGroup group,
                      at::Tensor weight, at::Tensor bias = {}, PageRelease release = {});
  // Counts as used although this build does not read it.
  void MarkUsed(const std::string& name) { used_.insert(name); }

  std::vector<Decoder::LinearModule>& modules() { return modules_; }
  std::int64_t parameter_count() const { return parameter_count_; }
  // Throws Error(kBadModel) with all faults; tensors that nobody asked for are faults unless one of
  // the patterns (regular expressions over the whole name) matches.
  void Finish(const std::string& model_path, const std::vector<std::string>& ignored) const;

 private:
  at::Tensor Read(const std::string& name, const std::vector<std::int64_t>& shape,
                  at::ScalarType dtype, const std::string& device);
  // Where a linear layer's weight is read to: weights are quantised on the CPU.
  const std::string& LinearDevice() const;

  const TensorSource& source_;
  const DecoderOptions options_;
  const Mode mode_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;
  std::set<std::string> used_;
  std::vector<std::string> missing_, misshaped_;
  std::vector<Decoder::LinearModule> modules_;
  std::int64_t parameter_count_ = 0;
};

}  // namespace offshoot::trainer
