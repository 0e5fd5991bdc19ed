#include "trainer/weights/safetensors_header.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

struct DtypeName {
  const char* name;
  at::ScalarType dtype;
};

constexpr std::array<DtypeName, 16> kDtypes = {{
    {"BOOL", at::ScalarType::Bool},
    {"U8", at::ScalarType::Byte},
    {"I8", at::ScalarType::Char},
    {"I16", at::ScalarType::Short},
    {"U16", at::ScalarType::UInt16},
    {"I32", at::ScalarType::Int},
    {"U32", at::ScalarType::UInt32},
    {"I64", at::ScalarType::Long},
    {"U64", at::ScalarType::UInt64},
    {"F16", at::ScalarType::Half},
    {"BF16", at::ScalarType::BFloat16},
    {"F32", at::ScalarType::Float},
    {"F64", at::ScalarType::Double},
    {"F8_E4M3", at::ScalarType::Float8_e4m3fn},
    {"F8_E5M2", at::ScalarType::Float8_e5m2},
    {"F8_E8M0", at::ScalarType::Float8_e8m0fnu},
}};

// Builds the header while the JSON is read, so that nothing is allocated that it does not need, and
// a name that occurs twice is seen (a JSON document object would silently keep one of the two).
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(SafetensorsHeader& header, std::string& fault) : header_(header), fault_(fault) {}

  bool key(string_t& text) override {
    if (depth_ == 1) {
      name_ = text;
      in_metadata_ = text == "__metadata__";
      has_dtype_ = has_shape_ = has_offsets_ = false;
      current_ = SafetensorsEntry();
      current_.info.name = text;
      offsets_.clear();
      return true;
    }
    field_ = text;
    if (in_metadata_) return true;
    if (field_ == "dtype" && !std::exchange(has_dtype_, true)) return true;
    if (field_ == "shape" && !std::exchange(has_shape_, true)) return true;
    if (field_ == "data_offsets" && !std::exchange(has_offsets_, true)) return true;
    return Refuse("tensor '" + name_ + "' has the unknown or repeated field '" + field_ + "'");
  }

  bool start_object(std::size_t) override {
    ++depth_;
    if (depth_ == 1) return true;
    if (depth_ == 2 && !in_array_) return true;
    return Refuse("'" + name_ + "' holds an object where a plain value is wanted");
  }

  bool end_object() override {
    --depth_;
    if (depth_ != 1 || in_metadata_) return true;
    if (!has_dtype_ || !has_shape_ || !has_offsets_ || offsets_.size() != 2) {
      return Refuse("tensor '" + name_ + "' lacks its dtype, shape or two data_offsets");
    }
    current_.begin = offsets_[0];
    current_.end = offsets_[1];
    header_.entries.push_back(std::move(current_));
    return true;
  }

  bool start_array(std::size_t) override {
    const bool wanted = depth_ == 2 && !in_metadata_ && !in_array_ &&
                        (field_ == "shape" || field_ == "data_offsets");
    if (!wanted) return Refuse("'" + name_ + "' holds a list where a plain value is wanted");
    in_array_ = true;
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    return true;
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && in_metadata_) {
      if (!header_.metadata.emplace(field_, text).second) {
        return Refuse("the metadata key '" + field_ + "' occurs twice");
      }
      return true;
    }
    if (depth_ == 2 && !in_array_ && field_ == "dtype") {
      current_.info.stored_type = text;
      return true;
    }
    return Refuse("'" + name_ + "' holds text where it should not");
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ == 2 && in_array_ && field_ == "shape") {
      if (current_.info.shape.size() == kMaxTensorRank) {
        return Refuse("tensor '" + name_ + "' has more than " + std::to_string(kMaxTensorRank) +
                      " dimensions");
      }
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return Refuse("tensor '" + name_ + "' has the absurd dimension " + std::to_string(value));
      }
      current_.info.shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (depth_ == 2 && in_array_ && field_ == "data_offsets" && offsets_.size() < 2) {
      offsets_.push_back(value);
      return true;
    }
    return Refuse("'" + name_ + "' holds a number where it should not");
  }

  bool number_integer(number_integer_t value) override {
    return Refuse("'" + name_ + "' holds the negative number " + std::to_string(value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return Refuse("'" + name_ + "' holds the number " + text + " where a whole one is wanted");
  }
  bool null() override { return Refuse("'" + name_ + "' holds a null"); }
  bool boolean(bool) override { return Refuse("'" + name_ + "' holds a boolean"); }
  bool binary(binary_t&) override { return Refuse("'" + name_ + "' holds binary data"); }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Refuse("it is not valid JSON at byte " + std::to_string(position));
  }

 private:
  bool Refuse(std::string fault) {
    if (fault_.empty()) fault_ = std::move(fault);
    return false;
  }

  SafetensorsHeader& header_;
  std::string& fault_;
  std::string name_;
  std::string field_;
  SafetensorsEntry current_;
  std::vector<std::uint64_t> offsets_;
  int depth_ = 0;
  bool in_array_ = false;
  bool in_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
};

std::string Quoted(const SafetensorsEntry& entry) { return "tensor '" + entry.info.name + "'"; }

// The bytes that dtype and shape ask for; nullopt when they overflow 63 bits, also where a zero
// dimension would hide it.
std::optional<std::uint64_t> BytesOf(const SafetensorsEntry& entry) {
  std::int64_t bytes = static_cast<std::int64_t>(c10::elementSize(entry.dtype));
  bool empty = false;
  for (const std::int64_t size : entry.info.shape) {
    empty = empty || size == 0;
    if (__builtin_mul_overflow(bytes, std::max<std::int64_t>(size, 1), &bytes)) {
      return std::nullopt;
    }
  }
  return empty ? 0 : static_cast<std::uint64_t>(bytes);
}

std::string CheckEntry(SafetensorsEntry& entry, std::uint64_t data_bytes) {
  const auto* dtype = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& known) {
    return entry.info.stored_type == known.name;
  });
  if (dtype == kDtypes.end()) {
    return Quoted(entry) + " has the dtype '" + entry.info.stored_type + "', which is not known";
  }
  entry.dtype = dtype->dtype;
  if (entry.begin > entry.end) {
    return Quoted(entry) + " ends at byte " + std::to_string(entry.end) + ", before its begin " +
           std::to_string(entry.begin);
  }
  const std::optional<std::uint64_t> wanted = BytesOf(entry);
  if (!wanted) return Quoted(entry) + " has a shape whose size overflows";
  if (*wanted != entry.end - entry.begin) {
    return Quoted(entry) + " needs " + std::to_string(*wanted) + " bytes for its dtype and shape" +
           " but its data_offsets give " + std::to_string(entry.end - entry.begin);
  }
  if (entry.end > data_bytes) {
    return Quoted(entry) + " ends at byte " + std::to_string(entry.end) + " of a data section of " +
           std::to_string(data_bytes) + " bytes: the file is cut short; fetch it again";
  }
  return "";
}

// Every data byte belongs to exactly one tensor, as the format demands.
std::string CheckCoverage(const std::vector<SafetensorsEntry>& entries, std::uint64_t data_bytes) {
  std::vector<const SafetensorsEntry*> by_place;
  by_place.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) by_place.push_back(&entry);
  std::sort(by_place.begin(), by_place.end(),
            [](const SafetensorsEntry* a, const SafetensorsEntry* b) {
              return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
            });
  std::uint64_t reached = 0;
  for (const SafetensorsEntry* entry : by_place) {
    if (entry->begin < reached) return Quoted(*entry) + " overlaps the tensor before it";
    if (entry->begin > reached) {
      return "bytes " + std::to_string(reached) + " to " + std::to_string(entry->begin) +
             " of the data belong to no tensor";
    }
    reached = entry->end;
  }
  if (reached != data_bytes) {
    return "the last " + std::to_string(data_bytes - reached) + " bytes belong to no tensor";
  }
  return "";
}

}  // namespace

SafetensorsHeader ParseSafetensorsHeader(const std::uint8_t* data, std::size_t size_bytes,
                                         const std::string& name) {
  const auto refuse = [&name](const std::string& fault) {
    throw Error(Reason::kBadModel, name + ": " + fault + ".");
  };
  if (size_bytes < 8) {
    refuse("is no safetensors file: it has " + std::to_string(size_bytes) + " bytes");
  }
  std::uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | data[i];
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    refuse("is no safetensors file: it claims a header of " + std::to_string(header_bytes) +
           " bytes (at most " + std::to_string(kMaxSafetensorsHeaderBytes) + " are allowed)");
  }
  if (header_bytes > size_bytes - 8) {
    refuse("is cut short: it claims a header of " + std::to_string(header_bytes) +
           " bytes and has " + std::to_string(size_bytes - 8) + " left; fetch it again");
  }
  const char* text = reinterpret_cast<const char*>(data) + 8;
  if (header_bytes == 0 || text[0] != '{') {
    refuse("is no safetensors file: its header does not begin with '{'");
  }
  SafetensorsHeader header;
  std::string fault;
  HeaderReader reader(header, fault);
  if (!nlohmann::json::sax_parse(text, text + header_bytes, &reader)) {
    refuse("has a bad header: " + fault);
  }
  const std::uint64_t data_begin = 8 + header_bytes;
  const std::uint64_t data_bytes = size_bytes - data_begin;
  for (SafetensorsEntry& entry : header.entries) {
    fault = CheckEntry(entry, data_bytes);
    if (!fault.empty()) refuse(fault);
  }
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return a.info.name < b.info.name;
            });
  for (std::size_t i = 1; i < header.entries.size(); ++i) {
    if (header.entries[i].info.name == header.entries[i - 1].info.name) {
      refuse(Quoted(header.entries[i]) + " occurs twice");
    }
  }
  fault = CheckCoverage(header.entries, data_bytes);
  if (!fault.empty()) refuse(fault);
  for (SafetensorsEntry& entry : header.entries) {
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  return header;
}

std::string SafetensorsDtypeName(at::ScalarType dtype) {
  for (const DtypeName& known : kDtypes) {
    if (known.dtype == dtype) return known.name;
  }
  throw Error(Reason::kInternal,
              std::string("safetensors has no name for the dtype ") + c10::toString(dtype) + ".");
}

}  // namespace offshoot::trainer
