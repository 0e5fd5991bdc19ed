// All tokenised rows of a data set, in one mapping (the cache file) or in one vector.
//
// Cache file, little-endian, made as NAME.tmp.PID and renamed:
//   header  64 bytes: magic "OFFSDATA", uint32 version, uint32 zero, uint64 index offset, uint64
//   index
//           size, uint64 checksum of data and index, padding
//   data    each row's ids, then its labels, int32
//   index   rows as RowEntry, then JSON with the counts
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "trainer/data/row_format.h"

namespace offshoot::trainer {

struct RowEntry {
  std::uint64_t offset = 0;  // of the ids in the data, in int32
  std::uint32_t length = 0;  // tokens
  std::uint32_t trained_tokens = 0;
  std::uint64_t line = 0;   // 0-based, over all sources
  std::uint64_t group = 0;  // hash of the trained part: equal ones stay together in a split
};
static_assert(sizeof(RowEntry) == 32);

// Immutable; thread-safe.
class RowStore {
 public:
  // Maps the cache file; null if there is none, or it is not whole (then it is made again).
  static std::shared_ptr<const RowStore> Open(const std::string& path);
  ~RowStore();
  RowStore(const RowStore&) = delete;
  RowStore& operator=(const RowStore&) = delete;

  std::span<const RowEntry> rows() const { return rows_; }
  std::span<const std::int32_t> ids(std::size_t row) const {
    return {data_ + rows_[row].offset, rows_[row].length};
  }
  std::span<const std::int32_t> labels(std::size_t row) const {
    return {data_ + rows_[row].offset + rows_[row].length, rows_[row].length};
  }
  const nlohmann::json& facts() const { return facts_; }

 private:
  friend class RowStoreWriter;
  RowStore() = default;

  void* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  std::vector<std::int32_t> owned_data_;
  std::vector<RowEntry> owned_rows_;
  const std::int32_t* data_ = nullptr;
  std::span<const RowEntry> rows_;
  nlohmann::json facts_;
};

// Takes rows one after the other. With a path the rows go to a file and only the index (32 bytes a
// row) is held in memory.
class RowStoreWriter {
 public:
  // path: of the cache file; empty keeps all in memory. Throws Error(kDiskFull) naming the file.
  explicit RowStoreWriter(const std::string& path);
  ~RowStoreWriter();
  RowStoreWriter(const RowStoreWriter&) = delete;
  RowStoreWriter& operator=(const RowStoreWriter&) = delete;

  void Add(const TokenRow& row, std::uint64_t line);
  std::size_t size() const { return rows_.size(); }
  // Ends the file, syncs and renames it. The writer is empty afterwards.
  std::shared_ptr<const RowStore> Finish(const nlohmann::json& facts);

 private:
  void Append(const void* bytes, std::size_t size);
  void Flush();

  const std::string path_;
  std::string temporary_;
  int file_ = -1;
  std::vector<char> pending_;
  std::vector<std::int32_t> data_;
  std::vector<RowEntry> rows_;
  std::uint64_t offset_ = 0;  // in int32
  std::uint64_t checksum_ = 0;
};

// A hash of the labels that are trained.
std::uint64_t HashOfTrainedPart(const TokenRow& row);

}  // namespace offshoot::trainer
