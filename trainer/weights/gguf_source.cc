#include "trainer/weights/gguf_source.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <utility>

#include "trainer/error.h"
#include "trainer/weights/host_tensor.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kMostExperts = 1 << 16;

struct Entry {
  TensorInfo info;
  GgufTensor tensor;
  // 0, or the number of heads whose rows were permuted.
  std::int64_t permuted_heads = 0;
  // Of a kv_b_proj that JoinLatent makes of `tensor`, its keys, and these.
  std::optional<GgufTensor> latent_values = std::nullopt;
};

at::ScalarType PlainType(const GgmlType& type) {
  if (std::strcmp(type.name, "F32") == 0) return at::kFloat;
  if (std::strcmp(type.name, "F16") == 0) return at::kHalf;
  if (std::strcmp(type.name, "BF16") == 0) return at::kBFloat16;
  return at::ScalarType::Undefined;
}

class GgufSource : public TensorSource {
 public:
  GgufSource(std::shared_ptr<const MappedFile> file, std::vector<Entry> entries)
      : file_(std::move(file)), entries_(std::move(entries)) {
    std::sort(entries_.begin(), entries_.end(),
              [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; });
    for (std::size_t i = 0; i < entries_.size(); ++i) by_name_.emplace(entries_[i].info.name, i);
  }

  std::vector<TensorInfo> List() const override {
    std::vector<TensorInfo> list;
    list.reserve(entries_.size());
    for (const Entry& entry : entries_) list.push_back(entry.info);
    return list;
  }

  const TensorInfo* Find(const std::string& name) const override {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &entries_[found->second].info;
  }

  at::Tensor Load(const std::string& name, at::ScalarType dtype) const override {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) {
      throw Error(Reason::kBadModel, file_->path() + ": has no tensor '" + name + "'.");
    }
    const Entry& entry = entries_[found->second];
    if (entry.latent_values) {
      return JoinLatent(LoadPart(entry, entry.tensor, dtype),
                        LoadPart(entry, *entry.latent_values, dtype));
    }
    return LoadPlain(entry, dtype);
  }

  void Release(const std::string& name) const override {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) return;
    const Entry& entry = entries_[found->second];
    file_->Release(entry.tensor.begin, entry.tensor.end);
    if (entry.latent_values) {
      file_->Release(entry.latent_values->begin, entry.latent_values->end);
    }
  }

  PageRelease ReleaseOf(const std::string& name, at::ScalarType dtype) const override {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) return {};
    const Entry& entry = entries_[found->second];
    if (!Shares(entry, dtype) || !Aligned(entry, dtype)) return {};
    return [file = file_, first = entry.tensor.begin](std::size_t begin, std::size_t end) {
      file->Release(first + begin, first + end);
    };
  }

 private:
  static bool Shares(const Entry& entry, at::ScalarType dtype) {
    return PlainType(*entry.tensor.type) == dtype && entry.permuted_heads == 0 &&
           !entry.latent_values;
  }

  // One of two tensors, as it lies in the file.
  at::Tensor LoadPart(const Entry& entry, const GgufTensor& tensor, at::ScalarType dtype) const {
    return LoadPlain({{entry.info.name, tensor.shape, tensor.type->name}, tensor}, dtype);
  }

  at::Tensor LoadPlain(const Entry& entry, at::ScalarType dtype) const {
    if (Shares(entry, dtype)) return Shared(entry, dtype);
    file_->WillNeed(entry.tensor.begin, entry.tensor.end);
    at::Tensor result;
    if (dtype == at::kFloat || dtype == at::kBFloat16) {
      result = Dequantise(entry, dtype);
    } else {
      result = Dequantise(entry, at::kFloat).to(dtype);
    }
    file_->Release(entry.tensor.begin, entry.tensor.end);
    return result;
  }

  bool Aligned(const Entry& entry, at::ScalarType dtype) const {
    return reinterpret_cast<std::uintptr_t>(file_->data() + entry.tensor.begin) %
               c10::elementSize(dtype) ==
           0;
  }

  at::Tensor Shared(const Entry& entry, at::ScalarType dtype) const {
    file_->WillNeed(entry.tensor.begin, entry.tensor.end);
    auto* data = const_cast<std::uint8_t*>(file_->data()) + entry.tensor.begin;
    if (!Aligned(entry, dtype)) {
      // Only a file with an alignment below four bytes can be so.
      at::Tensor copy = at::empty(entry.info.shape, at::TensorOptions().dtype(dtype));
      std::memcpy(copy.data_ptr(), data, entry.tensor.end - entry.tensor.begin);
      return copy;
    }
    return at::from_blob(
        data, entry.info.shape, [file = file_](void*) {}, at::TensorOptions().dtype(dtype));
  }

  at::Tensor Dequantise(const Entry& entry, at::ScalarType dtype) const {
    at::Tensor result = NewHostTensor(entry.info.shape, dtype);
    const GgmlType& type = *entry.tensor.type;
    // A permuted bias is a column of one-element rows.
    const bool column = entry.permuted_heads > 0 && entry.info.shape.size() == 1;
    const std::int64_t row_elements = column ? 1 : entry.info.shape.back();
    const std::int64_t rows = result.numel() / row_elements;
    const std::int64_t row_blocks = row_elements / type.block_elements;
    const std::int64_t head_rows = entry.permuted_heads > 0 ? rows / entry.permuted_heads : 0;
    const std::uint8_t* data = file_->data() + entry.tensor.begin;
    float* floats = dtype == at::kFloat ? result.data_ptr<float>() : nullptr;
    auto* packed = dtype == at::kBFloat16
                       ? reinterpret_cast<std::uint16_t*>(result.data_ptr<at::BFloat16>())
                       : nullptr;
    constexpr std::int64_t kGrainElements = 32768;
    constexpr std::int64_t kStripElements = std::int64_t{1} << 20;
    const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / row_elements);
    const std::int64_t strip = std::max<std::int64_t>(1, kStripElements / row_elements);
    const auto convert = [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> row(packed != nullptr ? static_cast<std::size_t>(row_elements) : 0);
      for (std::int64_t source = begin; source < end; ++source) {
        const std::int64_t place = head_rows > 0 ? UnpermutedRow(source, head_rows) : source;
        const std::uint8_t* blocks = data + source * row_blocks * type.block_bytes;
        if (packed == nullptr) {
          type.dequantise(blocks, row_blocks, floats + place * row_elements);
        } else {
          type.dequantise(blocks, row_blocks, row.data());
          PackBfloat16(row.data(), row_elements, packed + place * row_elements);
        }
      }
    };
    // The file's pages are given back behind each strip: what is in memory is the result.
    for (std::int64_t begin = 0; begin < rows; begin += strip) {
      const std::int64_t end = std::min(rows, begin + strip);
      at::parallel_for(begin, end, grain, convert);
      file_->Release(
          entry.tensor.begin,
          entry.tensor.begin + static_cast<std::uint64_t>(end * row_blocks * type.block_bytes));
    }
    return result;
  }

  std::shared_ptr<const MappedFile> file_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, std::size_t> by_name_;
};

std::int64_t PermutedHeads(const GgufArchitecture& architecture, const std::string& gguf_name,
                           const nlohmann::json& config) {
  if (!architecture.permutes_query_and_key) return 0;
  if (gguf_name.find(".attn_q.") != std::string::npos) return config.at("num_attention_heads");
  if (gguf_name.find(".attn_k.") != std::string::npos) return config.at("num_key_value_heads");
  return 0;
}

// The matrices of a stack [experts, rows, columns], each a tensor of its own: rows are whole
// blocks.
void AddExperts(const std::string& name, const GgufTensor& stack, std::vector<Entry>& entries) {
  const auto experts = static_cast<std::uint64_t>(stack.shape[0]);
  const std::uint64_t bytes = (stack.end - stack.begin) / experts;
  for (std::uint64_t i = 0; i < experts; ++i) {
    Entry entry;
    entry.info = {*ExpertName(name, static_cast<std::int64_t>(i)),
                  {stack.shape[1], stack.shape[2]},
                  stack.type->name};
    entry.tensor = stack;
    entry.tensor.shape = entry.info.shape;
    entry.tensor.begin = stack.begin + i * bytes;
    entry.tensor.end = entry.tensor.begin + bytes;
    entries.push_back(std::move(entry));
  }
}

// The entry of a kv_b_proj from its two tensors.
Entry JoinedEntry(const GgufFile& file, const std::string& name, const GgufTensor& keys) {
  std::string values_name = keys.name;
  values_name.replace(values_name.find(kLatentKeys), std::strlen(kLatentKeys), kLatentValues);
  for (const GgufTensor& values : file.layout.tensors) {
    if (values.name != values_name || keys.shape.size() != 3 || values.shape.size() != 3 ||
        keys.shape[0] != values.shape[0] || keys.shape[1] != values.shape[2]) {
      continue;
    }
    Entry entry;
    entry.info = {
        name, {keys.shape[0] * (keys.shape[2] + values.shape[1]), keys.shape[1]}, keys.type->name};
    entry.tensor = keys;
    entry.latent_values = values;
    return entry;
  }
  throw Error(Reason::kBadModel, file.file->path() + ": tensor '" + keys.name +
                                     "' does not go together with '" + values_name + "'.");
}

}  // namespace

std::unique_ptr<TensorSource> MakeGgufSource(GgufFile file, const GgufArchitecture& architecture,
                                             const nlohmann::json& config) {
  const auto refuse = [&file](const GgufTensor& tensor, const std::string& fault) {
    throw Error(Reason::kBadModel,
                file.file->path() + ": tensor '" + tensor.name + "' " + fault + ".");
  };
  std::vector<Entry> entries;
  entries.reserve(file.layout.tensors.size());
  for (const GgufTensor& tensor : file.layout.tensors) {
    // config.json's rope_scaling says what it holds.
    if (tensor.name == "rope_freqs.weight") continue;
    const auto name = HuggingFaceName(architecture, tensor.name);
    if (!name) {
      refuse(tensor, std::string("is none that the architecture '") + architecture.name + "' has");
    }
    if (tensor.type->dequantise == nullptr) {
      refuse(tensor, std::string("has the type ") + tensor.type->name +
                         ", which cannot be read; readable are " + ReadableGgmlTypes());
    }
    const std::int64_t heads = PermutedHeads(architecture, tensor.name, config);
    if (heads > 0 && (tensor.shape.size() > 2 || tensor.shape[0] % (2 * heads) != 0 ||
                      (tensor.shape.size() == 1 && tensor.type->block_elements != 1))) {
      refuse(tensor, "does not divide into " + std::to_string(heads) + " heads of an even width");
    }
    if (ExpertName(*name, 0)) {
      if (tensor.shape.size() != 3 || tensor.shape[0] > kMostExperts) {
        refuse(tensor, "is no stack of the matrices of at most " + std::to_string(kMostExperts) +
                           " experts");
      }
      AddExperts(*name, tensor, entries);
      continue;
    }
    if (architecture.latent_attention && tensor.name.find(kLatentValues) != std::string::npos) {
      continue;  // JoinedEntry finds it
    }
    if (architecture.latent_attention && tensor.name.find(kLatentKeys) != std::string::npos) {
      entries.push_back(JoinedEntry(file, *name, tensor));
      continue;
    }
    Entry entry;
    entry.info = {*name, tensor.shape, tensor.type->name};
    if (architecture.correction_is_row && tensor.name.ends_with(".exp_probs_b.bias")) {
      entry.info.shape.insert(entry.info.shape.begin(), 1);
    }
    entry.permuted_heads = heads;
    entry.tensor = tensor;
    entries.push_back(std::move(entry));
  }
  return std::make_unique<GgufSource>(std::move(file.file), std::move(entries));
}

}  // namespace offshoot::trainer
