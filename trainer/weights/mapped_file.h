// A file mapped read-only into memory, for formats whose tensors are used where they lie.
//
// Immutable after it is made; thread-safe. Tensors that share the mapping hold a shared_ptr to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace offshoot::trainer {

class MappedFile {
 public:
  // Throws Error(kBadModel): absent, not a regular file, not readable.
  static std::shared_ptr<const MappedFile> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::uint8_t* data() const { return data_; }
  std::size_t size_bytes() const { return size_bytes_; }

  // Starts reading a range ahead of its use. A hint: errors do not matter.
  void WillNeed(std::size_t begin, std::size_t end) const;
  // Gives the range's pages back after a conversion, and those that its reading mapped around it;
  // they are read again if they are touched again.
  void Release(std::size_t begin, std::size_t end) const;

 private:
  MappedFile() = default;
  std::string path_;
  const std::uint8_t* data_ = nullptr;
  std::size_t size_bytes_ = 0;
};

// The whole text of a small file. Throws Error(kBadModel): absent, unreadable, larger than the
// limit.
std::string ReadSmallFile(const std::string& path, std::size_t limit_bytes);

}  // namespace offshoot::trainer
