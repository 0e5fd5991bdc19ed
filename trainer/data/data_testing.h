// What the tests of this folder share: small tokenizers, temporary files, datasets in memory.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "trainer/data/dataset.h"
#include "trainer/data/token_batch.h"
#include "trainer/tokenizer/tokenizer.h"

namespace offshoot::trainer {

inline const std::filesystem::path kTokenizerTestData = "trainer/tokenizer/testdata";

inline std::string ReadTestFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "offshoot-data-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // Writes a file and gives its path.
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

// The committed tokenizer `base` with one of the committed templates, or with `source` itself.
inline std::unique_ptr<Tokenizer> TokenizerWithTemplate(const std::string& name_or_source,
                                                        const std::string& base = "byte_level") {
  const TemporaryDirectory directory;
  std::filesystem::copy(kTokenizerTestData / base, directory.path(),
                        std::filesystem::copy_options::recursive);
  const std::filesystem::path file = kTokenizerTestData / "templates" / name_or_source;
  const bool is_name = name_or_source.ends_with(".jinja");
  if (!name_or_source.empty()) {
    directory.Write("chat_template.jinja", is_name ? ReadTestFile(file) : name_or_source);
  }
  return Tokenizer::FromDirectory(directory.path().string());
}

// Rows of given lengths; row r has the ids r, r + 1, ...; all but the first `untrained` are
// trained.
class FakeDataset final : public Dataset {
 public:
  explicit FakeDataset(const std::vector<std::int64_t>& lengths, std::int64_t untrained = 1) {
    for (std::size_t r = 0; r < lengths.size(); ++r) {
      ids_.emplace_back();
      labels_.emplace_back();
      for (std::int64_t t = 0; t < lengths[r]; ++t) {
        ids_[r].push_back(static_cast<std::int32_t>(static_cast<std::int64_t>(r) + t));
        labels_[r].push_back(t < untrained ? static_cast<std::int32_t>(kIgnoredLabel)
                                           : ids_[r].back());
      }
    }
  }
  std::int64_t size() const override { return static_cast<std::int64_t>(ids_.size()); }
  std::span<const std::int32_t> ids(std::int64_t row) const override {
    return ids_.at(static_cast<std::size_t>(row));
  }
  std::span<const std::int32_t> labels(std::int64_t row) const override {
    return labels_.at(static_cast<std::size_t>(row));
  }
  std::int64_t trained_tokens(std::int64_t row) const override {
    std::int64_t count = 0;
    for (const std::int32_t label : labels(row)) count += label != kIgnoredLabel;
    return count;
  }
  std::int64_t line(std::int64_t row) const override { return row; }
  std::string Describe(std::int64_t row) const override {
    return "fake line " + std::to_string(row + 1);
  }

 private:
  std::vector<std::vector<std::int32_t>> ids_;
  std::vector<std::vector<std::int32_t>> labels_;
};

}  // namespace offshoot::trainer
