// The metadata keys of one architecture, checked as they are read. Borrows the file; thread-safe.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "trainer/error.h"
#include "trainer/weights/gguf.h"
#include "trainer/weights/gguf_architectures.h"

namespace offshoot::trainer {

// GGUF keeps settings as float32; 1e-05 must not become 9.999999747378752e-06 in config.json.
double ShortestDouble(float value);

class GgufKeys {
 public:
  GgufKeys(const GgufArchitecture& architecture, const GgufFile& file)
      : prefix_(std::string(architecture.name) + "."), file_(file) {}

  [[noreturn]] void Refuse(const std::string& fault) const {
    throw Error(Reason::kBadModel, file_.file->path() + ": " + fault + ".");
  }

  const nlohmann::json* Find(const std::string& key) const {
    const auto found = file_.layout.metadata.find(prefix_ + key);
    return found == file_.layout.metadata.end() ? nullptr : &*found;
  }

  std::optional<std::int64_t> Integer(const std::string& key) const { return WholeFrom(key, 1); }
  std::optional<std::int64_t> CountOrZero(const std::string& key) const {
    return WholeFrom(key, 0);
  }

  std::optional<std::int64_t> WholeFrom(const std::string& key, std::int64_t least) const {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return std::nullopt;
    constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
    if (!value->is_number_integer() || *value < least || *value > kLargest) {
      Refuse("its metadata key '" + prefix_ + key + "' is " + Shown(*value) +
             ", where a whole number of at least " + std::to_string(least) + " is wanted");
    }
    return value->get<std::int64_t>();
  }

  std::int64_t Needed(const std::string& key) const {
    const auto value = Integer(key);
    if (!value) Refuse("its metadata lacks the key '" + prefix_ + key + "'");
    return *value;
  }

  std::optional<double> Number(const std::string& key) const {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() <= 0) {
      Refuse("its metadata key '" + prefix_ + key + "' is " + Shown(*value) +
             ", where a positive number is wanted");
    }
    return ShortestDouble(value->get<float>());
  }

  const GgufTensor* Tensor(const std::string& name) const {
    for (const GgufTensor& tensor : file_.layout.tensors) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }

  static std::string Shown(const nlohmann::json& value) {
    return value.is_primitive()
               ? value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
               : value.type_name();
  }

  const std::string& prefix() const { return prefix_; }
  const GgufFile& file() const { return file_; }

 private:
  std::string prefix_;
  const GgufFile& file_;
};

}  // namespace offshoot::trainer
