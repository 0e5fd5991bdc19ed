#include "worker/prune.h"

#include <algorithm>
#include <filesystem>
#include <vector>

namespace offshoot::worker {
namespace {

namespace fs = std::filesystem;

struct Item {
  fs::path path;
  fs::file_time_type modified;
  std::int64_t size_bytes = 0;
};

std::int64_t SizeOf(const fs::directory_entry& entry) {
  std::error_code error;
  if (!entry.is_directory(error)) {
    const std::uintmax_t size = entry.file_size(error);
    return error ? 0 : static_cast<std::int64_t>(size);
  }
  std::int64_t total = 0;
  for (const auto& file : fs::recursive_directory_iterator(entry.path(), error)) {
    std::error_code ignored;
    if (file.is_regular_file(ignored)) {
      const std::uintmax_t size = file.file_size(ignored);
      if (!ignored) total += static_cast<std::int64_t>(size);
    }
  }
  return total;
}

}  // namespace

void PruneDirectory(const std::string& directory, std::int64_t max_bytes) {
  std::vector<Item> items;
  std::int64_t total = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    Item item{entry.path(), entry.last_write_time(error), SizeOf(entry)};
    total += item.size_bytes;
    items.push_back(std::move(item));
  }
  if (total <= max_bytes) return;
  std::sort(items.begin(), items.end(),
            [](const Item& a, const Item& b) { return a.modified < b.modified; });
  for (const Item& item : items) {
    if (total <= max_bytes) return;
    fs::remove_all(item.path, error);
    total -= item.size_bytes;
  }
}

}  // namespace offshoot::worker
