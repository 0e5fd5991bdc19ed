#include "trainer/weights/model_directory.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <set>
#include <unordered_map>
#include <utility>

#include "trainer/error.h"
#include "trainer/weights/host_tensor.h"
#include "trainer/weights/mapped_file.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;
using FilePointer = std::shared_ptr<const SafetensorsFile>;

constexpr std::size_t kMaxIndexBytes = std::size_t{256} << 20;
constexpr std::int64_t kStripElements = std::int64_t{1} << 17;   // converted at a time
constexpr std::int64_t kScaledElements = std::int64_t{1} << 15;  // the same, by way of float32

struct Fp8Blocks {
  std::int64_t rows = 128;
  std::int64_t columns = 128;
};

struct Place {
  FilePointer file;
  std::string path;        // of the file, for messages
  const TensorInfo* info;  // owned by the file
};

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

class DirectorySource : public TensorSource {
 public:
  DirectorySource(std::unordered_map<std::string, Place> places, Fp8Blocks blocks)
      : places_(std::move(places)), blocks_(blocks) {
    for (const auto& [name, place] : places_) {
      if (!IsScale(name)) list_.push_back(*place.info);
    }
    std::sort(list_.begin(), list_.end(),
              [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  }

  std::vector<TensorInfo> List() const override { return list_; }

  const TensorInfo* Find(const std::string& name) const override {
    const auto found = places_.find(name);
    return found == places_.end() || IsScale(name) ? nullptr : found->second.info;
  }

  at::Tensor Load(const std::string& name, at::ScalarType dtype) const override {
    const auto found = places_.find(name);
    if (found == places_.end()) {
      throw Error(Reason::kBadModel, "the base model has no tensor '" + name + "'.");
    }
    const Place& place = found->second;
    const at::Tensor stored = place.file->Get(name);
    if (stored.scalar_type() == dtype) return stored;
    const at::Tensor result = stored.scalar_type() == at::ScalarType::Float8_e4m3fn
                                  ? Dequantise(name, place, stored, dtype)
                                  : Convert(name, place, stored, dtype);
    place.file->Release(name);
    ReleaseScales(name);
    return result;
  }

  void Release(const std::string& name) const override {
    const auto found = places_.find(name);
    if (found != places_.end()) found->second.file->Release(name);
  }

  PageRelease ReleaseOf(const std::string& name, at::ScalarType dtype) const override {
    const auto found = places_.find(name);
    return found == places_.end() ? PageRelease() : found->second.file->ReleaseOf(name, dtype);
  }

 private:
  // A scale beside its FP8 weight is part of that weight, not a tensor of the model.
  bool IsScale(const std::string& name) const {
    for (const char* suffix : {"_scale_inv", "_scale"}) {
      if (!EndsWith(name, suffix)) continue;
      const auto weight = places_.find(name.substr(0, name.size() - std::string(suffix).size()));
      if (weight != places_.end() && weight->second.info->stored_type == "F8_E4M3") return true;
    }
    return false;
  }

  void ReleaseScales(const std::string& name) const {
    for (const char* suffix : {"_scale_inv", "_scale"}) {
      if (places_.contains(name + suffix)) Release(name + suffix);
    }
  }

  // Strip by strip, giving the file's pages back behind it: what is in memory is the result and a
  // strip.
  static at::Tensor Convert(const std::string& name, const Place& place, const at::Tensor& stored,
                            at::ScalarType dtype) {
    at::Tensor result = NewHostTensor(stored.sizes(), dtype);
    const at::Tensor from = stored.view({-1}), to = result.view({-1});
    for (std::int64_t begin = 0; begin < from.size(0); begin += kStripElements) {
      const std::int64_t count = std::min(kStripElements, from.size(0) - begin);
      to.narrow(0, begin, count).copy_(from.narrow(0, begin, count));
      ReleaseUpTo(name, place, stored, begin + count);
    }
    return result;
  }

  static void ReleaseUpTo(const std::string& name, const Place& place, const at::Tensor& stored,
                          std::int64_t elements) {
    place.file->Release(name, static_cast<std::size_t>(elements * stored.element_size()));
  }

  at::Tensor Dequantise(const std::string& name, const Place& place, const at::Tensor& stored,
                        at::ScalarType dtype) const {
    const auto refuse = [&](const std::string& fault) {
      throw Error(Reason::kBadModel, place.path + ": tensor '" + name + "' is FP8 " + fault + ".");
    };
    if (stored.dim() != 2) refuse("but not a matrix");
    const std::int64_t rows = stored.size(0);
    const std::int64_t columns = stored.size(1);
    if (const auto scale = places_.find(name + "_scale_inv"); scale != places_.end()) {
      const at::Tensor scales = scale->second.file->Get(scale->first).to(at::kFloat);
      const std::array<std::int64_t, 2> wanted = {
          (rows + blocks_.rows - 1) / blocks_.rows,
          (columns + blocks_.columns - 1) / blocks_.columns};
      if (scales.sizes() != at::IntArrayRef(wanted)) {
        refuse("and its weight_scale_inv does not have the shape [" + std::to_string(wanted[0]) +
               ", " + std::to_string(wanted[1]) + "]");
      }
      return Scale(name, place, stored, dtype, blocks_.rows, [&](std::int64_t row) {
        return scales[row / blocks_.rows]
            .repeat_interleave(blocks_.columns)
            .slice(0, 0, columns)
            .unsqueeze(0);
      });
    }
    if (const auto scale = places_.find(name + "_scale"); scale != places_.end()) {
      at::Tensor scales = scale->second.file->Get(scale->first).to(at::kFloat);
      if (scales.numel() == 1) scales = scales.reshape({1, 1});
      if (scales.dim() != 2 || scales.size(1) != 1 ||
          (scales.size(0) != rows && scales.size(0) != 1)) {
        refuse("and its weight_scale is neither one number nor one a row");
      }
      const bool per_row = scales.size(0) == rows;
      return Scale(name, place, stored, dtype, per_row ? 1 : rows,
                   [&](std::int64_t row) { return scales.narrow(0, per_row ? row : 0, 1); });
    }
    refuse("but has neither a weight_scale_inv nor a weight_scale beside it");
    return {};
  }

  // The same with a scale: `scale_of(row)` [1, 1 or columns] holds for the group of `group` rows
  // that begins at `row`.
  template <typename ScaleOf>
  static at::Tensor Scale(const std::string& name, const Place& place, const at::Tensor& stored,
                          at::ScalarType dtype, std::int64_t group, const ScaleOf& scale_of) {
    const std::int64_t rows = stored.size(0), columns = stored.size(1);
    at::Tensor result = NewHostTensor({rows, columns}, dtype);
    const std::int64_t most = std::min(
        group, std::max<std::int64_t>(1, kScaledElements / std::max<std::int64_t>(1, columns)));
    const at::Tensor strip = at::empty({std::min(most, rows), columns}, at::kFloat);
    for (std::int64_t first = 0; first < rows; first += group) {
      const at::Tensor scale = scale_of(first);
      const std::int64_t end = std::min(rows, first + group);
      for (std::int64_t begin = first; begin < end; begin += most) {
        const std::int64_t count = std::min(most, end - begin);
        const at::Tensor wide = strip.narrow(0, 0, count);
        wide.copy_(stored.narrow(0, begin, count)).mul_(scale);
        result.narrow(0, begin, count).copy_(wide);
        ReleaseUpTo(name, place, stored, (begin + count) * columns);
      }
    }
    return result;
  }

  std::unordered_map<std::string, Place> places_;
  std::vector<TensorInfo> list_;
  Fp8Blocks blocks_;
};

Fp8Blocks BlocksOf(const Json& config) {
  Fp8Blocks blocks;
  const auto quantization = config.find("quantization_config");
  if (quantization == config.end() || !quantization->is_object()) return blocks;
  const auto size = quantization->find("weight_block_size");
  if (size == quantization->end() || size->is_null()) return blocks;
  const bool plausible = size->is_array() && size->size() == 2 && (*size)[0].is_number_unsigned() &&
                         (*size)[1].is_number_unsigned() && (*size)[0] >= 1 &&
                         (*size)[0] <= 65536 && (*size)[1] >= 1 && (*size)[1] <= 65536;
  if (!plausible) {
    throw Error(Reason::kBadModel,
                "config.json: quantization_config.weight_block_size must be two positive numbers, "
                "not " +
                    size->dump() + ".");
  }
  return {(*size)[0].get<std::int64_t>(), (*size)[1].get<std::int64_t>()};
}

std::string Join(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i) {
    text += (i == 0 ? "" : ", ") + names[i];
  }
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

std::unordered_map<std::string, Place> PlacesOf(const FilePointer& file, const std::string& path) {
  std::unordered_map<std::string, Place> places;
  for (const TensorInfo& info : file->tensors())
    places.emplace(info.name, Place{file, path, &info});
  return places;
}

// The index's weight_map: tensor name -> file name.
std::map<std::string, std::string> ReadIndex(const std::string& path) {
  const Json index = Json::parse(ReadSmallFile(path, kMaxIndexBytes), nullptr, false);
  if (index.is_discarded()) throw Error(Reason::kBadModel, path + ": is not valid JSON.");
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw Error(Reason::kBadModel, path + ": has no weight_map.");
  }
  std::map<std::string, std::string> map;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const bool plain = file.is_string() && !file.get_ref<const std::string&>().empty() &&
                       file.get_ref<const std::string&>().find('/') == std::string::npos &&
                       EndsWith(file.get_ref<const std::string&>(), ".safetensors");
    if (!plain) {
      throw Error(Reason::kBadModel, path + ": the weight_map sends '" + name + "' to " +
                                         file.dump() +
                                         ", which is not a *.safetensors file beside it.");
    }
    map.emplace(name, file.get<std::string>());
  }
  return map;
}

std::unordered_map<std::string, Place> OpenShards(const std::string& directory,
                                                  const std::string& index_path) {
  const std::map<std::string, std::string> weight_map = ReadIndex(index_path);
  std::map<std::string, FilePointer> files;
  std::vector<std::string> absent;
  for (const auto& [name, file] : weight_map) files.emplace(file, nullptr);
  for (auto& [name, file] : files) {
    const std::string path = directory + "/" + name;
    if (!std::filesystem::exists(path)) {
      absent.push_back(name);
    } else {
      file = SafetensorsFile::Open(path);
    }
  }
  if (!absent.empty()) {
    throw Error(Reason::kBadModel, directory + ": lacks the shards " + Join(absent) +
                                       " that model.safetensors.index.json names; fetch them.");
  }
  std::unordered_map<std::string, Place> places;
  std::vector<std::string> missing;
  for (const auto& [name, file_name] : weight_map) {
    const FilePointer& file = files.at(file_name);
    const TensorInfo* info = file->Find(name);
    if (info == nullptr) {
      missing.push_back(name + " (" + file_name + ")");
    } else {
      places.emplace(name, Place{file, directory + "/" + file_name, info});
    }
  }
  if (!missing.empty()) {
    throw Error(Reason::kBadModel, index_path + ": names tensors that their files do not hold: " +
                                       Join(missing) + ".");
  }
  return places;
}

}  // namespace

std::unique_ptr<TensorSource> OpenModelDirectory(const std::string& directory, const Json& config) {
  const Fp8Blocks blocks = BlocksOf(config);
  const std::string single = directory + "/model.safetensors";
  const std::string index = directory + "/model.safetensors.index.json";
  if (std::filesystem::exists(single)) {
    return std::make_unique<DirectorySource>(PlacesOf(SafetensorsFile::Open(single), single),
                                             blocks);
  }
  if (std::filesystem::exists(index)) {
    return std::make_unique<DirectorySource>(OpenShards(directory, index), blocks);
  }
  const bool pickle = std::filesystem::exists(directory + "/pytorch_model.bin") ||
                      std::filesystem::exists(directory + "/pytorch_model.bin.index.json");
  throw Error(Reason::kBadModel,
              directory + ": has neither model.safetensors nor model.safetensors.index.json" +
                  (pickle ? "; its pytorch_model.bin is a pickle, which is never read: save the "
                            "model as safetensors first."
                          : "."));
}

}  // namespace offshoot::trainer
