#include "trainer/weights/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

constexpr int kMaxRank = 4;        // ggml's own
constexpr int kMaxArrayDepth = 2;  // an array of arrays is the deepest known
constexpr std::uint64_t kMaxArrayElements =
    1u << 25;                                   // of all arrays of a file; vocabularies have 2^18
constexpr std::uint64_t kMaxNameBytes = 65535;  // the format's bound on keys
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 1u << 20;

enum class ValueType : std::uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

class Reader {
 public:
  Reader(const std::uint8_t* data, std::size_t size_bytes, const std::string& name)
      : data_(data), size_bytes_(size_bytes), name_(name) {}

  [[noreturn]] void Refuse(const std::string& fault) const {
    throw Error(Reason::kBadModel, name_ + ": " + fault + ".");
  }

  std::uint64_t left() const { return size_bytes_ - offset_; }
  std::uint64_t offset() const { return offset_; }

  template <typename T>
  T Read() {
    Need(sizeof(T));
    T value;
    std::memcpy(&value, data_ + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  std::string ReadString(std::uint64_t limit_bytes, const std::string& what) {
    const std::uint64_t bytes = Read<std::uint64_t>();
    if (bytes > limit_bytes) {
      Refuse(what + " claims " + std::to_string(bytes) + " bytes, which is absurd");
    }
    Need(bytes);
    std::string text(reinterpret_cast<const char*>(data_ + offset_), bytes);
    offset_ += bytes;
    return text;
  }

  Json ReadValue(ValueType type, const std::string& key, int depth) {
    switch (type) {
      case ValueType::kUint8:
        return Read<std::uint8_t>();
      case ValueType::kInt8:
        return Read<std::int8_t>();
      case ValueType::kUint16:
        return Read<std::uint16_t>();
      case ValueType::kInt16:
        return Read<std::int16_t>();
      case ValueType::kUint32:
        return Read<std::uint32_t>();
      case ValueType::kInt32:
        return Read<std::int32_t>();
      case ValueType::kFloat32:
        return Read<float>();
      case ValueType::kBool:
        return Read<std::uint8_t>() != 0;
      case ValueType::kString:
        return ReadString(left(), "the value of '" + key + "'");
      case ValueType::kArray:
        return ReadArray(key, depth + 1);
      case ValueType::kUint64:
        return Read<std::uint64_t>();
      case ValueType::kInt64:
        return Read<std::int64_t>();
      case ValueType::kFloat64:
        return Read<double>();
    }
    Refuse("the value of '" + key + "' has the unknown type " +
           std::to_string(static_cast<std::uint32_t>(type)));
  }

 private:
  void Need(std::uint64_t bytes) const {
    if (bytes > left()) {
      Refuse("is cut short: it ends at byte " + std::to_string(size_bytes_) +
             " in the middle of its header; fetch it again");
    }
  }

  Json ReadArray(const std::string& key, int depth) {
    if (depth > kMaxArrayDepth) Refuse("the value of '" + key + "' is nested too deeply");
    const auto type = static_cast<ValueType>(Read<std::uint32_t>());
    const std::uint64_t count = Read<std::uint64_t>();
    // An element has one byte at least, so an honest count is never above what is left.
    if (count > left() || count > kMaxArrayElements - elements_) {
      Refuse("the array '" + key + "' claims " + std::to_string(count) +
             " elements, which is absurd");
    }
    elements_ += count;
    Json array = Json::array();
    array.get_ref<Json::array_t&>().reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) array.push_back(ReadValue(type, key, depth));
    return array;
  }

  const std::uint8_t* data_;
  std::uint64_t size_bytes_;
  const std::string& name_;
  std::uint64_t offset_ = 0;
  std::uint64_t elements_ = 0;
};

GgufTensor ReadTensorInfo(Reader& reader) {
  GgufTensor tensor;
  tensor.name = reader.ReadString(kMaxNameBytes, "a tensor's name");
  const std::string quoted = "tensor '" + tensor.name + "'";
  const std::uint32_t rank = reader.Read<std::uint32_t>();
  if (rank == 0 || rank > kMaxRank) {
    reader.Refuse(quoted + " claims " + std::to_string(rank) + " dimensions (1 to 4 can be)");
  }
  std::int64_t elements = 1;
  for (std::uint32_t i = 0; i < rank; ++i) {
    const std::uint64_t size = reader.Read<std::uint64_t>();
    if (size == 0 || size > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) ||
        __builtin_mul_overflow(elements, static_cast<std::int64_t>(size), &elements)) {
      reader.Refuse(quoted + " has the absurd dimension " + std::to_string(size));
    }
    tensor.shape.push_back(static_cast<std::int64_t>(size));
  }
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  const std::uint32_t type = reader.Read<std::uint32_t>();
  tensor.type = FindGgmlType(type);
  if (tensor.type == nullptr) {
    reader.Refuse(quoted + " has the unknown type " + std::to_string(type));
  }
  if (tensor.shape.back() % tensor.type->block_elements != 0) {
    reader.Refuse(quoted + " has rows of " + std::to_string(tensor.shape.back()) +
                  " elements, which blocks of " + tensor.type->name + " do not divide");
  }
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(elements / tensor.type->block_elements, tensor.type->block_bytes,
                             &bytes)) {
    reader.Refuse(quoted + " has a shape whose size overflows");
  }
  tensor.begin = reader.Read<std::uint64_t>();
  if (__builtin_add_overflow(tensor.begin, static_cast<std::uint64_t>(bytes), &tensor.end)) {
    reader.Refuse(quoted + " lies outside the file");
  }
  return tensor;
}

void ReadHead(Reader& reader) {
  constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
  if (reader.left() < 24 || reader.Read<std::uint32_t>() != kMagic) {
    reader.Refuse("is no GGUF file");
  }
  const std::uint32_t version = reader.Read<std::uint32_t>();
  if ((version & 0xffff) == 0)
    reader.Refuse("is a big-endian GGUF file; convert it to little-endian");
  if (version != 2 && version != 3) {
    reader.Refuse("is a GGUF file of version " + std::to_string(version) +
                  "; versions 2 and 3 can be read");
  }
}

std::uint64_t AlignmentOf(const Reader& reader, const Json& metadata) {
  const auto found = metadata.find("general.alignment");
  if (found == metadata.end()) return kDefaultAlignment;
  const std::uint64_t alignment =
      found->is_number_unsigned() ? found->get<std::uint64_t>() : std::uint64_t{0};
  if (!std::has_single_bit(alignment) || alignment > kMaxAlignment) {
    reader.Refuse("general.alignment is " + found->dump() + ", which is no plausible power of two");
  }
  return alignment;
}

// Turns offsets within the data section into offsets within the file.
void PlaceTensors(const Reader& reader, std::uint64_t data_begin, std::uint64_t size_bytes,
                  std::uint64_t alignment, std::vector<GgufTensor>& tensors) {
  const std::uint64_t data_bytes = size_bytes - std::min(data_begin, size_bytes);
  for (GgufTensor& tensor : tensors) {
    if (tensor.end > data_bytes) {
      reader.Refuse("tensor '" + tensor.name + "' ends at byte " + std::to_string(tensor.end) +
                    " of a data section of " + std::to_string(data_bytes) +
                    " bytes: the file is cut short; fetch it again");
    }
    if (tensor.begin % alignment != 0) {
      reader.Refuse("tensor '" + tensor.name + "' begins at byte " + std::to_string(tensor.begin) +
                    " of the data, which is not aligned to " + std::to_string(alignment));
    }
    tensor.begin += data_begin;
    tensor.end += data_begin;
  }
  std::vector<const GgufTensor*> order;
  order.reserve(tensors.size());
  for (const GgufTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->begin < b->begin; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i]->begin < order[i - 1]->end) {
      reader.Refuse("tensors '" + order[i - 1]->name + "' and '" + order[i]->name + "' overlap");
    }
  }
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->name < b->name; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i]->name == order[i - 1]->name) {
      reader.Refuse("tensor '" + order[i]->name + "' occurs twice");
    }
  }
}

}  // namespace

GgufLayout ParseGguf(const std::uint8_t* data, std::size_t size_bytes, const std::string& name) {
  Reader reader(data, size_bytes, name);
  ReadHead(reader);
  const std::uint64_t tensor_count = reader.Read<std::uint64_t>();
  const std::uint64_t key_count = reader.Read<std::uint64_t>();
  constexpr std::uint64_t kLeastKeyBytes = 8 + 4 + 1;
  constexpr std::uint64_t kLeastTensorBytes = 8 + 4 + 8 + 4 + 8;
  if (key_count > reader.left() / kLeastKeyBytes) {
    reader.Refuse("claims " + std::to_string(key_count) + " metadata keys, which is absurd");
  }
  if (tensor_count > reader.left() / kLeastTensorBytes) {
    reader.Refuse("claims " + std::to_string(tensor_count) + " tensors, which is absurd");
  }
  GgufLayout layout;
  layout.metadata = Json::object();
  for (std::uint64_t i = 0; i < key_count; ++i) {
    std::string key = reader.ReadString(kMaxNameBytes, "a metadata key");
    const auto type = static_cast<ValueType>(reader.Read<std::uint32_t>());
    Json value = reader.ReadValue(type, key, 0);
    if (layout.metadata.contains(key)) reader.Refuse("the metadata key '" + key + "' occurs twice");
    layout.metadata.emplace(std::move(key), std::move(value));
  }
  const std::uint64_t alignment = AlignmentOf(reader, layout.metadata);
  layout.tensors.reserve(tensor_count);
  for (std::uint64_t i = 0; i < tensor_count; ++i) layout.tensors.push_back(ReadTensorInfo(reader));
  const std::uint64_t data_begin = (reader.offset() + alignment - 1) / alignment * alignment;
  PlaceTensors(reader, data_begin, size_bytes, alignment, layout.tensors);
  return layout;
}

GgufFile OpenGguf(const std::string& path) {
  GgufFile result;
  result.file = MappedFile::Open(path);
  result.layout = ParseGguf(result.file->data(), result.file->size_bytes(), path);
  return result;
}

}  // namespace offshoot::trainer
