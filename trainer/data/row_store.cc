#include "trainer/data/row_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "trainer/data/counter_random.h"
#include "trainer/data/token_batch.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::size_t kHeaderBytes = 64;
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kFlushBytes = 4u << 20;

struct StoreHeader {
  std::array<char, 8> magic = {'O', 'F', 'F', 'S', 'D', 'A', 'T', 'A'};
  std::uint32_t version = kVersion;
  std::uint32_t reserved = 0;
  std::uint64_t index_offset = 0;  // bytes
  std::uint64_t index_rows = 0;
  std::uint64_t facts_bytes = 0;
  std::uint64_t checksum = 0;
  std::array<char, 16> padding = {};
};
static_assert(sizeof(StoreHeader) == kHeaderBytes);

// Guards against torn and bit-rotten files, not against an adversary.
std::uint64_t Checksum(std::uint64_t state, const char* bytes, std::size_t size) {
  std::size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    state = (state ^ word) * 0x9FB21C651E98DF25ull;
    state ^= state >> 29;
  }
  for (; i < size; ++i) {
    state = (state ^ static_cast<unsigned char>(bytes[i])) * 0x9FB21C651E98DF25ull;
    state ^= state >> 29;
  }
  return state;
}

[[noreturn]] void FailToWrite(const std::string& path) {
  throw Error(Reason::kDiskFull, "the cache of tokenised data " + path +
                                     " cannot be written: " + std::strerror(errno) +
                                     "; free some space or give another work directory");
}

}  // namespace

std::uint64_t HashOfTrainedPart(const TokenRow& row) {
  std::uint64_t hash = 0;
  for (const std::int32_t label : row.labels) {
    if (label != kIgnoredLabel) {
      hash = CounterRandom::Mix(hash ^ static_cast<std::uint32_t>(label));
    }
  }
  return hash;
}

std::shared_ptr<const RowStore> RowStore::Open(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return nullptr;
  struct stat status = {};
  const bool usable = ::fstat(file, &status) == 0 && status.st_size >= off_t{kHeaderBytes};
  const auto size = static_cast<std::size_t>(status.st_size);
  void* mapping = usable ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  ::close(file);
  if (mapping == MAP_FAILED) return nullptr;
  std::shared_ptr<RowStore> store(new RowStore);
  store->mapping_ = mapping;
  store->mapping_bytes_ = size;

  const char* const bytes = static_cast<const char*>(mapping);
  StoreHeader header;
  std::memcpy(&header, bytes, kHeaderBytes);
  const std::size_t body = size - kHeaderBytes;
  if (header.magic != StoreHeader().magic || header.version != kVersion ||
      header.index_offset < kHeaderBytes || header.index_offset > size ||
      header.index_offset % alignof(RowEntry) != 0 ||
      header.index_rows > (size - header.index_offset) / sizeof(RowEntry) ||
      header.index_offset + header.index_rows * sizeof(RowEntry) + header.facts_bytes != size ||
      header.checksum != Checksum(0, bytes + kHeaderBytes, body)) {
    return nullptr;
  }
  store->data_ = reinterpret_cast<const std::int32_t*>(bytes + kHeaderBytes);
  store->rows_ = {reinterpret_cast<const RowEntry*>(bytes + header.index_offset),
                  static_cast<std::size_t>(header.index_rows)};
  const std::uint64_t numbers = (header.index_offset - kHeaderBytes) / sizeof(std::int32_t);
  for (const RowEntry& row : store->rows_) {
    if (row.offset > numbers || 2ull * row.length > numbers - row.offset) return nullptr;
  }
  store->facts_ = nlohmann::json::parse(bytes + size - header.facts_bytes, bytes + size, nullptr,
                                        /*allow_exceptions=*/false);
  if (!store->facts_.is_object()) return nullptr;
  return store;
}

RowStore::~RowStore() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapping_bytes_);
}

RowStoreWriter::RowStoreWriter(const std::string& path) : path_(path) {
  if (path_.empty()) return;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
  temporary_ = path_ + ".tmp." + std::to_string(::getpid());
  file_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file_ < 0) FailToWrite(temporary_);
  const StoreHeader empty;
  pending_.assign(kHeaderBytes, 0);
  std::memcpy(pending_.data(), &empty, kHeaderBytes);
  Flush();
  checksum_ = 0;
}

RowStoreWriter::~RowStoreWriter() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(temporary_.c_str());
}

void RowStoreWriter::Add(const TokenRow& row, std::uint64_t line) {
  RowEntry entry;
  entry.offset = offset_;
  entry.length = static_cast<std::uint32_t>(row.ids.size());
  for (const std::int32_t label : row.labels) entry.trained_tokens += label != kIgnoredLabel;
  entry.line = line;
  entry.group = HashOfTrainedPart(row);
  rows_.push_back(entry);
  offset_ += 2 * row.ids.size();
  if (file_ < 0) {
    data_.insert(data_.end(), row.ids.begin(), row.ids.end());
    data_.insert(data_.end(), row.labels.begin(), row.labels.end());
    return;
  }
  // A row is a multiple of eight bytes, so the checksum does not depend on where it is flushed.
  Append(row.ids.data(), row.ids.size() * sizeof(std::int32_t));
  Append(row.labels.data(), row.labels.size() * sizeof(std::int32_t));
  if (pending_.size() >= kFlushBytes) Flush();
}

void RowStoreWriter::Append(const void* bytes, std::size_t size) {
  const char* const begin = static_cast<const char*>(bytes);
  pending_.insert(pending_.end(), begin, begin + size);
}

void RowStoreWriter::Flush() {
  checksum_ = Checksum(checksum_, pending_.data(), pending_.size());
  std::size_t done = 0;
  while (done < pending_.size()) {
    const ssize_t count = ::write(file_, pending_.data() + done, pending_.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) FailToWrite(temporary_);
    done += static_cast<std::size_t>(count);
  }
  pending_.clear();
}

std::shared_ptr<const RowStore> RowStoreWriter::Finish(const nlohmann::json& facts) {
  if (file_ < 0) {
    std::shared_ptr<RowStore> store(new RowStore);
    store->owned_data_ = std::move(data_);
    store->owned_rows_ = std::move(rows_);
    store->data_ = store->owned_data_.data();
    store->rows_ = store->owned_rows_;
    store->facts_ = facts;
    return store;
  }
  const std::string text = facts.dump();
  StoreHeader header;
  header.index_offset = kHeaderBytes + offset_ * sizeof(std::int32_t);
  header.index_rows = rows_.size();
  header.facts_bytes = text.size();
  Append(rows_.data(), rows_.size() * sizeof(RowEntry));
  Append(text.data(), text.size());
  Flush();
  header.checksum = checksum_;
  if (::pwrite(file_, &header, kHeaderBytes, 0) != ssize_t{kHeaderBytes} || ::fsync(file_) != 0 ||
      ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    FailToWrite(temporary_);
  }
  ::close(file_);
  file_ = -1;
  std::shared_ptr<const RowStore> store = RowStore::Open(path_);
  if (store == nullptr) {
    throw Error(Reason::kInternal, "the cache of tokenised data " + path_ +
                                       " does not read back; remove it and try again");
  }
  return store;
}

}  // namespace offshoot::trainer
