#include "trainer/weights/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "trainer/error.h"
#include "trainer/weights/durable_file.h"
#include "trainer/weights/mapped_file.h"
#include "trainer/weights/safetensors_header.h"

namespace offshoot::trainer {

struct SafetensorsFile::Impl {
  std::shared_ptr<const MappedFile> file;
  SafetensorsHeader header;
  std::vector<TensorInfo> tensors;

  const SafetensorsEntry* Find(const std::string& name) const {
    const auto at = std::lower_bound(header.entries.begin(), header.entries.end(), name,
                                     [](const SafetensorsEntry& entry, const std::string& wanted) {
                                       return entry.info.name < wanted;
                                     });
    return at != header.entries.end() && at->info.name == name ? &*at : nullptr;
  }
  bool Aligned(const SafetensorsEntry& entry) const {
    return reinterpret_cast<std::uintptr_t>(file->data() + entry.begin) %
               c10::elementSize(entry.dtype) ==
           0;
  }
};

SafetensorsFile::SafetensorsFile() : impl_(std::make_shared<Impl>()) {}
SafetensorsFile::~SafetensorsFile() = default;

std::shared_ptr<const SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  std::shared_ptr<SafetensorsFile> result(new SafetensorsFile());
  Impl& impl = *result->impl_;
  impl.file = MappedFile::Open(path);
  impl.header = ParseSafetensorsHeader(impl.file->data(), impl.file->size_bytes(), path);
  impl.tensors.reserve(impl.header.entries.size());
  for (const SafetensorsEntry& entry : impl.header.entries) impl.tensors.push_back(entry.info);
  return result;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl_->header.metadata;
}

const std::vector<TensorInfo>& SafetensorsFile::tensors() const { return impl_->tensors; }

bool SafetensorsFile::Has(const std::string& name) const { return impl_->Find(name) != nullptr; }

const TensorInfo* SafetensorsFile::Find(const std::string& name) const {
  const SafetensorsEntry* entry = impl_->Find(name);
  return entry == nullptr ? nullptr : &entry->info;
}

at::Tensor SafetensorsFile::Get(const std::string& name) const {
  const SafetensorsEntry* entry = impl_->Find(name);
  if (entry == nullptr) {
    throw Error(Reason::kBadModel, impl_->file->path() + ": has no tensor '" + name + "'.");
  }
  impl_->file->WillNeed(entry->begin, entry->end);
  const auto options = at::TensorOptions().dtype(entry->dtype);
  auto* data = const_cast<std::uint8_t*>(impl_->file->data()) + entry->begin;
  if (!impl_->Aligned(*entry)) {
    // The format does not promise alignment; a misaligned tensor is copied, alone.
    at::Tensor copy = at::empty(entry->info.shape, options);
    std::copy(data, data + (entry->end - entry->begin),
              static_cast<std::uint8_t*>(copy.data_ptr()));
    return copy;
  }
  return at::from_blob(
      data, entry->info.shape, [file = impl_->file](void*) {}, options);
}

void SafetensorsFile::Release(const std::string& name) const {
  if (const SafetensorsEntry* entry = impl_->Find(name)) {
    impl_->file->Release(entry->begin, entry->end);
  }
}

void SafetensorsFile::Release(const std::string& name, std::size_t first_bytes) const {
  if (const SafetensorsEntry* entry = impl_->Find(name)) {
    impl_->file->Release(entry->begin,
                         std::min<std::uint64_t>(entry->end, entry->begin + first_bytes));
  }
}

PageRelease SafetensorsFile::ReleaseOf(const std::string& name, at::ScalarType dtype) const {
  const SafetensorsEntry* entry = impl_->Find(name);
  if (entry == nullptr || entry->dtype != dtype || !impl_->Aligned(*entry)) return {};
  return [file = impl_->file, first = entry->begin](std::size_t begin, std::size_t end) {
    file->Release(first + begin, first + end);
  };
}

struct SafetensorsWriter::Impl {
  struct Place {
    SafetensorsSlot slot;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    std::uint64_t written = 0;  // bytes
    bool begun = false;
  };
  explicit Impl(const std::string& path) : path(path), file(path) {}

  [[noreturn]] void Refuse(const std::string& name, const std::string& fault) const {
    throw Error(Reason::kInternal, path + ": tensor '" + name + "' " + fault + ".");
  }
  Place& Find(const std::string& name) {
    const auto found = places.find(name);
    if (found == places.end()) Refuse(name, "was not declared");
    return found->second;
  }
  // The place's next bytes.
  void Put(Place& place, const at::Tensor& tensor) {
    const at::Tensor plain = tensor.detach().to(at::kCPU).contiguous();
    file.WriteAt(place.begin + place.written, plain.const_data_ptr(), plain.nbytes());
    place.written += plain.nbytes();
    place.begun = true;
  }

  std::string path;
  DurableFile file;
  std::map<std::string, Place> places;
};

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsSlot> slots,
                                     const std::map<std::string, std::string>& metadata)
    : impl_(std::make_unique<Impl>(path)) {
  std::sort(slots.begin(), slots.end(), [](const SafetensorsSlot& a, const SafetensorsSlot& b) {
    const auto width_a = c10::elementSize(a.dtype);
    const auto width_b = c10::elementSize(b.dtype);
    return width_a != width_b ? width_a > width_b : a.name < b.name;
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (SafetensorsSlot& slot : slots) {
    std::uint64_t bytes = c10::elementSize(slot.dtype);
    for (const std::int64_t size : slot.shape) bytes *= static_cast<std::uint64_t>(size);
    header[slot.name] = {{"dtype", SafetensorsDtypeName(slot.dtype)},
                         {"shape", slot.shape},
                         {"data_offsets", {offset, offset + bytes}}};
    Impl::Place place{std::move(slot), offset, offset + bytes};
    const std::string name = place.slot.name;
    if (!impl_->places.emplace(name, std::move(place)).second) {
      throw Error(Reason::kInternal, path + ": tensor '" + name + "' is to be written twice.");
    }
    offset += bytes;
  }
  constexpr std::size_t kAlignmentBytes = 64;
  std::string text = header.dump();
  text.resize((text.size() + 8 + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes - 8, ' ');
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix.push_back(static_cast<char>(text.size() >> (8 * i)));
  impl_->file.WriteAt(0, prefix.data(), prefix.size());
  impl_->file.WriteAt(8, text.data(), text.size());
  for (auto& [name, place] : impl_->places) {
    place.begin += 8 + text.size();
    place.end += 8 + text.size();
  }
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::Write(const std::string& name, const at::Tensor& tensor) {
  Impl::Place& place = impl_->Find(name);
  if (place.begun) impl_->Refuse(name, "was written before");
  if (tensor.scalar_type() != place.slot.dtype ||
      tensor.sizes() != at::IntArrayRef(place.slot.shape)) {
    impl_->Refuse(name, "has another dtype or shape than declared");
  }
  impl_->Put(place, tensor);
}

void SafetensorsWriter::Append(const std::string& name, const at::Tensor& rows) {
  Impl::Place& place = impl_->Find(name);
  const at::IntArrayRef declared(place.slot.shape);
  const bool fits = rows.scalar_type() == place.slot.dtype && rows.dim() >= 1 &&
                    rows.dim() == static_cast<std::int64_t>(declared.size()) &&
                    rows.sizes().slice(1) == declared.slice(1);
  if (!fits) impl_->Refuse(name, "has another dtype or shape than declared");
  if (place.written + rows.nbytes() > place.end - place.begin) {
    impl_->Refuse(name, "has more rows than declared");
  }
  impl_->Put(place, rows);
}

void SafetensorsWriter::Finish() {
  for (const auto& [name, place] : impl_->places) {
    if (!place.begun) impl_->Refuse(name, "was never written");
    if (place.written != place.end - place.begin) impl_->Refuse(name, "has rows not yet written");
  }
  impl_->file.Commit();
}

void WriteSafetensors(const std::string& path, const std::map<std::string, at::Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsSlot> slots;
  slots.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) {
    slots.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  }
  SafetensorsWriter writer(path, std::move(slots), metadata);
  for (const auto& [name, tensor] : tensors) writer.Write(name, tensor);
  writer.Finish();
}

}  // namespace offshoot::trainer
