#include "trainer/weights/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

// A fault maps the pages around the one that is touched too, so reading the edge of one tensor maps
// the end of its neighbour, which may have been given back already.
constexpr std::size_t kMappedAround = std::size_t{64} << 10;

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value() const { return value_; }

 private:
  int value_;
};

[[noreturn]] void Refuse(const std::string& path, int error_number) {
  throw Error(Reason::kBadModel, path + ": cannot be read: " + std::strerror(error_number) + ".");
}

std::size_t SizeOfRegularFile(const std::string& path, int descriptor) {
  struct stat status;
  if (fstat(descriptor, &status) != 0) Refuse(path, errno);
  if (!S_ISREG(status.st_mode)) {
    throw Error(Reason::kBadModel, path + ": is not a regular file.");
  }
  return static_cast<std::size_t>(status.st_size);
}

void Advise(const std::uint8_t* data, std::size_t begin, std::size_t end, int advice,
            bool whole_pages_only) {
  static const std::size_t page_bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  if (whole_pages_only) {
    begin = (begin + page_bytes - 1) / page_bytes * page_bytes;
    end = end / page_bytes * page_bytes;
  } else {
    begin = begin / page_bytes * page_bytes;
  }
  if (begin >= end) return;
  madvise(const_cast<std::uint8_t*>(data) + begin, end - begin, advice);
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::Open(const std::string& path) {
  Descriptor descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.value() < 0) Refuse(path, errno);
  std::shared_ptr<MappedFile> file(new MappedFile());
  file->path_ = path;
  const std::size_t size_bytes = SizeOfRegularFile(path, descriptor.value());
  if (size_bytes > 0) {
    void* data = mmap(nullptr, size_bytes, PROT_READ, MAP_PRIVATE, descriptor.value(), 0);
    if (data == MAP_FAILED) Refuse(path, errno);
    file->data_ = static_cast<const std::uint8_t*>(data);
    file->size_bytes_ = size_bytes;
  }
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::uint8_t*>(data_), size_bytes_);
}

void MappedFile::WillNeed(std::size_t begin, std::size_t end) const {
  Advise(data_, begin, end, MADV_WILLNEED, /*whole_pages_only=*/false);
}

void MappedFile::Release(std::size_t begin, std::size_t end) const {
  begin -= std::min(begin, kMappedAround);
  end = std::min(size_bytes_, end + kMappedAround);
  Advise(data_, begin, end, MADV_DONTNEED, /*whole_pages_only=*/true);
}

std::string ReadSmallFile(const std::string& path, std::size_t limit_bytes) {
  Descriptor descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.value() < 0) Refuse(path, errno);
  const std::size_t size_bytes = SizeOfRegularFile(path, descriptor.value());
  if (size_bytes > limit_bytes) {
    throw Error(Reason::kBadModel, path + ": is " + std::to_string(size_bytes) +
                                       " bytes; more than " + std::to_string(limit_bytes) +
                                       " bytes is not plausible for this file.");
  }
  std::string text(size_bytes, '\0');
  std::size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = read(descriptor.value(), text.data() + filled, text.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) Refuse(path, errno);
    if (got == 0) break;
    filled += static_cast<std::size_t>(got);
  }
  text.resize(filled);
  return text;
}

}  // namespace offshoot::trainer
