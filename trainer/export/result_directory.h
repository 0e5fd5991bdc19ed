// A directory of results that is whole or absent: built in "<path>.tmp", synced, and exchanged with
// what was there before.
//
// Errors: Error(kDiskFull) or Error(kInternal) naming the path. One thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace offshoot::trainer {

class ResultDirectory {
 public:
  // Makes "<path>.tmp", empty; what a killed process left there is removed.
  explicit ResultDirectory(std::string path);
  // Removes the temporary directory unless Commit was reached.
  ~ResultDirectory();
  ResultDirectory(const ResultDirectory&) = delete;
  ResultDirectory& operator=(const ResultDirectory&) = delete;

  // Where to write until Commit.
  const std::string& path() const { return temporary_path_; }
  // Syncs every file and directory, then puts it in place; an older result there is removed after.
  void Commit();

 private:
  std::string path_;
  std::string temporary_path_;
  bool committed_ = false;
};

struct ResultFile {
  std::string path;  // relative, with '/'
  std::string digest;
  std::int64_t size_bytes = 0;
};

// Regular files below a directory with their digests, sorted by path.
std::vector<ResultFile> ListResultFiles(const std::string& directory);

}  // namespace offshoot::trainer
