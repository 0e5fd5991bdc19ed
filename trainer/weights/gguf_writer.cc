#include "trainer/weights/gguf_writer.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "trainer/error.h"
#include "trainer/weights/durable_file.h"

namespace offshoot::trainer {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kAlignment = 32;
// The format's numbers of types.
constexpr std::uint32_t kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kString = 8, kArray = 9;

template <typename T>
void Append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void AppendText(std::string& bytes, const std::string& text) {
  Append<std::uint64_t>(bytes, text.size());
  bytes += text;
}

std::uint64_t Aligned(std::uint64_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

template <typename T>
std::vector<T> ListOf(const Json& values) {
  std::vector<T> list;
  list.reserve(values.size());
  for (const Json& value : values) list.push_back(value.get<T>());
  return list;
}

template <typename Predicate>
bool All(const Json& values, const Predicate& predicate) {
  return std::all_of(values.begin(), values.end(), predicate);
}

}  // namespace

void GgufMetadata::Key(const std::string& key, std::uint32_t type) {
  AppendText(bytes_, key);
  Append(bytes_, type);
  ++count_;
}

void GgufMetadata::Text(const std::string& key, const std::string& value) {
  Key(key, kString);
  AppendText(bytes_, value);
}

void GgufMetadata::Uint32(const std::string& key, std::uint32_t value) {
  Key(key, kUint32);
  Append(bytes_, value);
}

void GgufMetadata::Float32(const std::string& key, float value) {
  Key(key, kFloat32);
  Append(bytes_, value);
}

void GgufMetadata::Bool(const std::string& key, bool value) {
  Key(key, kBool);
  Append<std::uint8_t>(bytes_, value ? 1 : 0);
}

void GgufMetadata::Texts(const std::string& key, const std::vector<std::string>& values) {
  Key(key, kArray);
  Append(bytes_, kString);
  Append<std::uint64_t>(bytes_, values.size());
  for (const std::string& value : values) AppendText(bytes_, value);
}

void GgufMetadata::Int32s(const std::string& key, const std::vector<std::int32_t>& values) {
  Key(key, kArray);
  Append(bytes_, kInt32);
  Append<std::uint64_t>(bytes_, values.size());
  for (const std::int32_t value : values) Append(bytes_, value);
}

void GgufMetadata::Float32s(const std::string& key, const std::vector<float>& values) {
  Key(key, kArray);
  Append(bytes_, kFloat32);
  Append<std::uint64_t>(bytes_, values.size());
  for (const float value : values) Append(bytes_, value);
}

bool GgufMetadata::Value(const std::string& key, const Json& value) {
  const auto fits_int32 = [](const Json& number) {
    return number.is_number_integer() && number >= std::numeric_limits<std::int32_t>::min() &&
           number <= std::numeric_limits<std::int32_t>::max();
  };
  if (value.is_string()) {
    Text(key, value);
  } else if (value.is_boolean()) {
    Bool(key, value);
  } else if (value.is_number_unsigned() && value <= std::numeric_limits<std::uint32_t>::max()) {
    Uint32(key, value);
  } else if (value.is_number_float()) {
    Float32(key, value);
  } else if (!value.is_array()) {
    return false;
  } else if (All(value, [](const Json& item) { return item.is_string(); })) {
    Texts(key, ListOf<std::string>(value));
  } else if (All(value, fits_int32)) {
    Int32s(key, ListOf<std::int32_t>(value));
  } else if (All(value, [](const Json& item) { return item.is_number_float(); })) {
    Float32s(key, ListOf<float>(value));
  } else {
    return false;
  }
  return true;
}

struct GgufWriter::Impl {
  explicit Impl(const std::string& path) : file(path) {}
  void WriteAt(std::size_t index, std::int64_t first_block, const at::Tensor& values);
  DurableFile file;
  std::vector<GgufSlot> slots;
  std::vector<std::uint64_t> places;    // bytes from the file's start
  std::vector<std::int64_t> unwritten;  // blocks
  std::string path;
};

GgufWriter::GgufWriter(const std::string& path, const GgufMetadata& metadata,
                       std::vector<GgufSlot> slots)
    : impl_(std::make_unique<Impl>(path)) {
  std::string head = "GGUF";
  Append<std::uint32_t>(head, 3);
  Append<std::uint64_t>(head, slots.size());
  Append<std::uint64_t>(head, metadata.count());
  head += metadata.bytes();
  std::uint64_t offset = 0;
  for (const GgufSlot& slot : slots) {
    AppendText(head, slot.name);
    Append(head, static_cast<std::uint32_t>(slot.shape.size()));
    std::int64_t elements = 1;
    for (auto size = slot.shape.rbegin(); size != slot.shape.rend(); ++size) {
      Append<std::uint64_t>(head, static_cast<std::uint64_t>(*size));
      elements *= *size;
    }
    if (slot.type->quantise == nullptr || slot.shape.empty() ||
        slot.shape.back() % slot.type->block_elements != 0) {
      throw Error(Reason::kInternal, path + ": tensor '" + slot.name + "' cannot be written as " +
                                         slot.type->name + ".");
    }
    Append(head, slot.type->id);
    Append(head, offset);
    impl_->unwritten.push_back(elements / slot.type->block_elements);
    impl_->places.push_back(offset);
    offset = Aligned(offset + static_cast<std::uint64_t>(elements / slot.type->block_elements *
                                                         slot.type->block_bytes));
  }
  head.resize(Aligned(head.size()));
  for (std::uint64_t& place : impl_->places) place += head.size();
  impl_->file.WriteAt(0, head.data(), head.size());
  // The padding behind the last tensor is part of the file.
  if (offset > 0) impl_->file.WriteAt(head.size() + offset - 1, "\0", 1);
  impl_->slots = std::move(slots);
  impl_->path = path;
}

GgufWriter::~GgufWriter() = default;

void GgufWriter::Impl::WriteAt(std::size_t index, std::int64_t first_block,
                               const at::Tensor& values) {
  const GgmlType& type = *slots[index].type;
  const at::Tensor plain = values.detach().contiguous();
  const float* data = plain.const_data_ptr<float>();
  const std::int64_t blocks = plain.numel() / type.block_elements;
  constexpr std::int64_t kPieceBlocks = std::int64_t{1} << 20;
  std::vector<std::uint8_t> bytes;
  for (std::int64_t begin = 0; begin < blocks; begin += kPieceBlocks) {
    const std::int64_t count = std::min(kPieceBlocks, blocks - begin);
    bytes.resize(static_cast<std::size_t>(count * type.block_bytes));
    at::parallel_for(0, count, 4096, [&](std::int64_t first, std::int64_t last) {
      type.quantise(data + (begin + first) * type.block_elements, last - first,
                    bytes.data() + first * type.block_bytes);
    });
    file.WriteAt(
        places[index] + static_cast<std::uint64_t>((first_block + begin) * type.block_bytes),
        bytes.data(), bytes.size());
  }
  unwritten[index] -= blocks;
}

void GgufWriter::Write(std::size_t index, const at::Tensor& values) {
  const GgufSlot& slot = impl_->slots.at(index);
  if (values.scalar_type() != at::kFloat || values.sizes() != at::IntArrayRef(slot.shape)) {
    throw Error(Reason::kInternal,
                impl_->path + ": tensor '" + slot.name + "' is not float32 of its declared shape.");
  }
  impl_->WriteAt(index, 0, values);
}

void GgufWriter::WritePart(std::size_t index, std::int64_t part, const at::Tensor& values) {
  const GgufSlot& slot = impl_->slots.at(index);
  if (values.scalar_type() != at::kFloat || part < 0 || part >= slot.shape[0] ||
      values.sizes() != at::IntArrayRef(slot.shape).slice(1)) {
    throw Error(Reason::kInternal, impl_->path + ": part " + std::to_string(part) + " of tensor '" +
                                       slot.name + "' is not float32 of its declared shape.");
  }
  impl_->WriteAt(index, part * (values.numel() / slot.type->block_elements), values);
}

void GgufWriter::WriteRows(std::size_t index, std::int64_t first, const at::Tensor& values) {
  const GgufSlot& slot = impl_->slots.at(index);
  if (slot.shape.size() != 2 || values.scalar_type() != at::kFloat || values.dim() != 2 ||
      values.size(1) != slot.shape[1] || first < 0 || first + values.size(0) > slot.shape[0]) {
    throw Error(Reason::kInternal, impl_->path + ": rows from " + std::to_string(first) +
                                       " of tensor '" + slot.name +
                                       "' are not float32 of its declared shape.");
  }
  impl_->WriteAt(index, first * (slot.shape[1] / slot.type->block_elements), values);
}

void GgufWriter::Finish() {
  for (std::size_t i = 0; i < impl_->slots.size(); ++i) {
    if (impl_->unwritten[i] != 0) {
      throw Error(Reason::kInternal,
                  impl_->path + ": tensor '" + impl_->slots[i].name + "' was not written once.");
    }
  }
  impl_->file.Commit();
}

}  // namespace offshoot::trainer
