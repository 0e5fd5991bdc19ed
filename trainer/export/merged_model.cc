#include "trainer/export/merged_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/matmul.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <utility>
#include <vector>

#include "trainer/error.h"
#include "trainer/weights/durable_file.h"
#include "trainer/weights/passing.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// The dtype a tensor is written in: as the base stores it, where that is a plain one.
at::ScalarType MergedType(const BaseModelFiles& base, const TensorInfo& info,
                          const MergedModelOptions& options) {
  if (base.is_gguf) return options.dtype;
  const std::array<std::pair<const char*, at::ScalarType>, 10> plain = {{{"F32", at::kFloat},
                                                                         {"BF16", at::kBFloat16},
                                                                         {"F16", at::kHalf},
                                                                         {"F64", at::kDouble},
                                                                         {"I64", at::kLong},
                                                                         {"I32", at::kInt},
                                                                         {"I16", at::kShort},
                                                                         {"I8", at::kChar},
                                                                         {"U8", at::kByte},
                                                                         {"BOOL", at::kBool}}};
  for (const auto& [name, dtype] : plain) {
    if (info.stored_type == name) return dtype;
  }
  return options.dtype;
}

std::int64_t BytesOf(const SafetensorsSlot& slot) {
  std::int64_t bytes = static_cast<std::int64_t>(c10::elementSize(slot.dtype));
  for (const std::int64_t size : slot.shape) bytes *= size;
  return bytes;
}

// In the order of names, a new shard whenever the next tensor would make one too large.
std::vector<std::vector<SafetensorsSlot>> SplitIntoShards(std::vector<SafetensorsSlot> slots,
                                                          std::int64_t shard_bytes) {
  std::vector<std::vector<SafetensorsSlot>> shards(1);
  std::int64_t filled = 0;
  for (SafetensorsSlot& slot : slots) {
    const std::int64_t bytes = BytesOf(slot);
    if (!shards.back().empty() && filled + bytes > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    filled += bytes;
    shards.back().push_back(std::move(slot));
  }
  return shards;
}

std::string ShardName(std::size_t index, std::size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

// W + scaling * B * A in float32, rounded once; strip by strip of rows.
at::Tensor Merge(const BaseModelFiles& base, const std::string& name, const LoraWeights& adapter,
                 at::ScalarType dtype) {
  constexpr std::int64_t kStripElements = std::int64_t{1} << 21;  // 8 MiB of float32
  const at::Tensor a = adapter.a.detach().to(at::kCPU, at::kFloat);
  const at::Tensor b = adapter.b.detach().to(at::kCPU, at::kFloat);
  // The stored values, not yet rounded: a quantised base is merged from its float32 values.
  const TensorInfo& info = *base.tensors->Find(name);
  const bool stored_plainly = info.stored_type == "BF16" || info.stored_type == "F16";
  const at::Tensor weight =
      base.tensors->Load(name, stored_plainly && dtype != at::kFloat ? dtype : at::kFloat);
  if (weight.dim() != 2 || weight.size(0) != b.size(0) || weight.size(1) != a.size(1)) {
    throw Error(Reason::kBadModel, "tensor '" + name + "' does not have the shape of its adapter.");
  }
  at::Tensor merged = weight.new_empty(weight.sizes(), at::TensorOptions().dtype(dtype));
  const std::int64_t rows = std::max<std::int64_t>(1, kStripElements / weight.size(1));
  for (std::int64_t begin = 0; begin < weight.size(0); begin += rows) {
    const std::int64_t count = std::min(rows, weight.size(0) - begin);
    at::Tensor sum = at::matmul(b.narrow(0, begin, count), a);
    sum.mul_(adapter.scaling).add_(weight.narrow(0, begin, count).to(at::kFloat));
    merged.narrow(0, begin, count).copy_(sum);
  }
  return merged;
}

void CheckTargets(const BaseModelFiles& base, const AdapterByPath& adapters) {
  for (const auto& [path, adapter] : adapters) {
    if (base.tensors->Find(path + ".weight") == nullptr) {
      throw Error(Reason::kBadModel, "the adapter changes '" + path +
                                         "', but the base model has no "
                                         "tensor '" +
                                         path + ".weight' to merge it into.");
    }
  }
}

bool IsAdapted(const AdapterByPath& adapters, const std::string& name) {
  const std::string suffix = ".weight";
  return name.ends_with(suffix) && adapters.contains(name.substr(0, name.size() - suffix.size()));
}

// What gives back the pages of MergedTensor's result where that is the base's own; else empty.
PageRelease ReleaseOfMerged(const BaseModelFiles& base, const AdapterByPath& adapters,
                            const std::string& name, at::ScalarType dtype) {
  return IsAdapted(adapters, name) ? PageRelease() : base.tensors->ReleaseOf(name, dtype);
}

void WriteWeights(const BaseModelFiles& base, const AdapterByPath& adapters,
                  const std::string& directory, const MergedModelOptions& options) {
  std::vector<SafetensorsSlot> slots;
  std::int64_t total_bytes = 0;
  for (const TensorInfo& info : base.tensors->List()) {
    slots.push_back({info.name, MergedType(base, info, options), info.shape});
    total_bytes += BytesOf(slots.back());
  }
  const auto shards = SplitIntoShards(std::move(slots), options.shard_bytes);
  Json weight_map = Json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string file_name = ShardName(i, shards.size());
    SafetensorsWriter writer(directory + "/" + file_name, shards[i], {{"format", "pt"}});
    for (const SafetensorsSlot& slot : shards[i]) {
      weight_map[slot.name] = file_name;
      const at::Tensor merged = MergedTensor(base, adapters, slot.name, slot.dtype);
      const PageRelease release = ReleaseOfMerged(base, adapters, slot.name, slot.dtype);
      if (release && merged.dim() > 0 && merged.numel() > 0) {
        VisitPieces(merged, release,
                    [&](std::int64_t, const at::Tensor& rows) { writer.Append(slot.name, rows); });
      } else {
        writer.Write(slot.name, merged);
      }
      base.tensors->Release(slot.name);
    }
    writer.Finish();
  }
  if (shards.size() > 1) {
    const Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
    WriteFileDurably(directory + "/model.safetensors.index.json", index.dump(2) + "\n");
  }
}

std::string DtypeName(at::ScalarType dtype) {
  if (dtype == at::kFloat) return "float32";
  if (dtype == at::kHalf) return "float16";
  return "bfloat16";
}

Json MergedConfig(const BaseModelFiles& base, const MergedModelOptions& options) {
  Json config = base.config;
  bool says_dtype = false;
  for (const char* key : {"dtype", "torch_dtype"}) {
    const auto found = config.find(key);
    says_dtype = says_dtype || (found != config.end() && found->is_string());
  }
  const bool quantised = config.erase("quantization_config") > 0;
  if (base.is_gguf || quantised || !says_dtype) {
    // What most weights are written in: that of the largest matrix.
    at::ScalarType dtype = options.dtype;
    std::int64_t largest = -1;
    for (const TensorInfo& info : base.tensors->List()) {
      std::int64_t elements = 1;
      for (const std::int64_t size : info.shape) elements *= size;
      if (elements > largest) {
        largest = elements;
        dtype = MergedType(base, info, options);
      }
    }
    config.erase("torch_dtype");
    config["dtype"] = DtypeName(dtype);
  } else if (!config.contains("dtype")) {
    config["dtype"] = config["torch_dtype"];
  }
  // Readers older than transformers 4.56 know the old name only.
  config["torch_dtype"] = config["dtype"];
  return config;
}

// Terms travel with the weights; so does code that config.json's auto_map names (copied, never
// run).
void CopyCompanions(const BaseModelFiles& base, const std::string& directory) {
  if (base.is_gguf) return;
  for (const fs::directory_entry& entry : fs::directory_iterator(base.path)) {
    if (!entry.is_regular_file()) continue;
    const std::string name = entry.path().filename().string();
    bool wanted = base.config.contains("auto_map") && entry.path().extension() == ".py";
    for (const char* prefix : {"LICENSE", "LICENCE", "NOTICE", "USE_POLICY"}) {
      wanted = wanted || name.starts_with(prefix);
    }
    if (wanted) CopyFileDurably(entry.path().string(), directory + "/" + name);
  }
}

}  // namespace

at::Tensor MergedTensor(const BaseModelFiles& base, const AdapterByPath& adapters,
                        const std::string& name, at::ScalarType dtype) {
  if (IsAdapted(adapters, name)) {
    const std::string path = name.substr(0, name.size() - std::string(".weight").size());
    return Merge(base, name, *adapters.at(path), dtype);
  }
  return base.tensors->Load(name, dtype);
}

AdapterByPath AdaptersByPath(const Decoder& decoder, const LoraSet& adapters) {
  AdapterByPath result;
  const auto& modules = decoder.linear_modules();
  for (std::size_t i = 0; i < modules.size(); ++i) {
    if (const LoraWeights* weights = adapters.Find(i)) result.emplace(modules[i].path, weights);
  }
  return result;
}

void WriteMergedModel(const BaseModelFiles& base, const AdapterByPath& adapters,
                      const Tokenizer* tokenizer, const std::string& directory,
                      const MergedModelOptions& options) {
  const at::NoGradGuard no_grad;
  CheckTargets(base, adapters);
  WriteWeights(base, adapters, directory, options);
  WriteFileDurably(directory + "/config.json", MergedConfig(base, options).dump(2) + "\n");
  if (!base.generation_config.is_null()) {
    WriteFileDurably(directory + "/generation_config.json", base.generation_config.dump(2) + "\n");
  }
  if (tokenizer != nullptr) tokenizer->Save(directory);
  CopyCompanions(base, directory);
}

void CheckMergedWeights(const BaseModelFiles& base, const AdapterByPath& adapters,
                        const BaseModelFiles& merged) {
  const at::NoGradGuard no_grad;
  CheckTargets(base, adapters);
  for (const TensorInfo& info : base.tensors->List()) {
    const auto refuse = [&](const std::string& fault) {
      throw Error(Reason::kBadModel, merged.path + ": tensor '" + info.name + "' " + fault + ".");
    };
    const TensorInfo* stored = merged.tensors->Find(info.name);
    if (stored == nullptr) refuse("is missing");
    const at::ScalarType dtype = MergedType(merged, *stored, {.dtype = at::ScalarType::Undefined});
    if (dtype == at::ScalarType::Undefined) refuse("is stored as " + stored->stored_type);
    if (!EqualInPieces(merged.tensors->Load(info.name, dtype),
                       merged.tensors->ReleaseOf(info.name, dtype),
                       MergedTensor(base, adapters, info.name, dtype),
                       ReleaseOfMerged(base, adapters, info.name, dtype))) {
      refuse("is not the base's with the adapter merged into it");
    }
    merged.tensors->Release(info.name);
    base.tensors->Release(info.name);
  }
}

}  // namespace offshoot::trainer
