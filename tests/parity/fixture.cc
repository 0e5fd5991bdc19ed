#include "tests/parity/fixture.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "trainer/weights/safetensors.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;

nlohmann::json ReadJson(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  return nlohmann::json::parse(file);
}

void AddCases(const std::string& root, std::vector<std::string>& paths) {
  std::vector<std::string> found;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (fs::exists(entry.path() / "expected.json")) found.push_back(entry.path().string());
  }
  std::sort(found.begin(), found.end());
  paths.insert(paths.end(), found.begin(), found.end());
}

}  // namespace

bool Fixture::HasFile(const std::string& file) const { return fs::exists(File(file)); }

std::vector<std::string> Fixture::TrainedVariants() const {
  std::vector<std::string> variants;
  for (const auto& [key, value] : expected.items()) {
    if (value.is_object() && value.contains("loss_trace")) variants.push_back(key);
  }
  return variants;
}

std::vector<std::string> Fixture::ConfigFiles() const {
  std::vector<std::string> files = {"config.json"};
  if (HasFile("model/config.hub.json")) files.emplace_back("config.hub.json");
  return files;
}

std::unique_ptr<Decoder> Fixture::Load(const std::string& config_file, at::ScalarType dtype,
                                       Quantisation quantisation) const {
  BaseModelFiles files = OpenBaseModel(File("model"));
  files.config = ReadJson(File("model/" + config_file));
  DecoderOptions options;
  options.dtype = dtype;
  options.quantisation = quantisation;
  return Decoder::Load(files, options);
}

TokenBatch Fixture::Row(std::int64_t row) const {
  const std::int64_t length = attention_mask[row].sum().item<std::int64_t>();
  TokenBatch batch;
  batch.tokens = input_ids[row].slice(0, 0, length).contiguous();
  batch.positions = at::arange(length, at::kLong);
  batch.labels =
      at::cat({labels[row].slice(0, 1, length), at::full({1}, kIgnoredLabel, at::kLong)});
  batch.row_offsets = {0, length};
  batch.trained_tokens = batch.labels.ne(kIgnoredLabel).sum().item<std::int64_t>();
  batch.rows = {row};
  return batch;
}

TokenBatch Fixture::Batch() const {
  TokenBatch batch;
  batch.row_offsets = {0};
  std::vector<at::Tensor> tokens, positions, shifted;
  for (std::int64_t row = 0; row < rows(); ++row) {
    TokenBatch one = Row(row);
    tokens.push_back(one.tokens);
    positions.push_back(one.positions);
    shifted.push_back(one.labels);
    batch.row_offsets.push_back(batch.row_offsets.back() + one.row_offsets.back());
    batch.trained_tokens += one.trained_tokens;
    batch.rows.push_back(row);
  }
  batch.tokens = at::cat(tokens);
  batch.positions = at::cat(positions);
  batch.labels = at::cat(shifted);
  return batch;
}

at::Tensor Fixture::Packed(const at::Tensor& padded) const {
  std::vector<at::Tensor> rows_of;
  for (std::int64_t row = 0; row < rows(); ++row) {
    rows_of.push_back(padded[row].slice(0, 0, attention_mask[row].sum().item<std::int64_t>()));
  }
  return at::cat(rows_of);
}

std::vector<std::string> FixturePaths() {
  std::vector<std::string> paths;
  AddCases("tests/parity/fixtures", paths);
  const char* extra = std::getenv("OFFSHOOT_FIXTURES");
  std::stringstream roots(extra == nullptr ? "" : extra);
  for (std::string root; std::getline(roots, root, ':');) {
    if (!root.empty()) AddCases(root, paths);
  }
  return paths;
}

Fixture ReadFixture(const std::string& path) {
  Fixture fixture;
  fixture.path = path;
  fixture.name = fs::path(path).filename().string();
  fixture.expected = ReadJson(path + "/expected.json");
  const auto inputs = SafetensorsFile::Open(path + "/inputs.safetensors");
  fixture.input_ids = inputs->Get("input_ids");
  fixture.attention_mask = inputs->Get("attention_mask");
  fixture.labels = inputs->Get("labels");
  return fixture;
}

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return std::numeric_limits<double>::infinity();
  const double difference = a.to(at::kDouble).sub(b.to(at::kDouble)).abs().max().item<double>();
  return std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
}

}  // namespace offshoot::trainer
