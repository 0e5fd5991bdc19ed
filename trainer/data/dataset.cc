#include "trainer/data/dataset.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "trainer/data/row_store.h"
#include "trainer/data/split.h"
#include "trainer/data/tokenize.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using nlohmann::json;

// Part of the cache's key: raise it whenever the same input gives other rows.
constexpr int kEncodingVersion = 1;

struct Names {
  std::vector<std::string> paths;
  std::vector<std::int64_t> first_lines;  // of each source, counted over all
};

class RowView final : public Dataset {
 public:
  RowView(std::shared_ptr<const RowStore> store, std::vector<std::int64_t> rows,
          std::shared_ptr<const Names> names)
      : store_(std::move(store)), rows_(std::move(rows)), names_(std::move(names)) {}

  std::int64_t size() const override { return static_cast<std::int64_t>(rows_.size()); }
  std::span<const std::int32_t> ids(std::int64_t row) const override {
    return store_->ids(At(row));
  }
  std::span<const std::int32_t> labels(std::int64_t row) const override {
    return store_->labels(At(row));
  }
  std::int64_t trained_tokens(std::int64_t row) const override {
    return store_->rows()[At(row)].trained_tokens;
  }
  std::int64_t line(std::int64_t row) const override {
    return static_cast<std::int64_t>(store_->rows()[At(row)].line);
  }
  std::string Describe(std::int64_t row) const override {
    const auto& firsts = names_->first_lines;
    const auto after = std::upper_bound(firsts.begin(), firsts.end(), line(row));
    const auto source = static_cast<std::size_t>(after - firsts.begin()) - 1;
    return names_->paths[source] + " line " + std::to_string(line(row) - firsts[source] + 1);
  }

 private:
  std::size_t At(std::int64_t row) const {
    return static_cast<std::size_t>(rows_.at(static_cast<std::size_t>(row)));
  }

  const std::shared_ptr<const RowStore> store_;
  const std::vector<std::int64_t> rows_;
  const std::shared_ptr<const Names> names_;
};

// What the rows depend on.
json KeyOf(const DataOptions& options, const std::string& tokenizer_digest) {
  json sources = json::array();
  for (const DataSource& source : options.sources) {
    sources.push_back({{"digest", source.digest}, {"type", static_cast<int>(source.type)}});
  }
  return {{"encoding_version", kEncodingVersion},
          {"sources", sources},
          {"tokenizer", tokenizer_digest},
          {"sequence_len", options.sequence_len},
          {"vocab_size", options.vocab_size}};
}

json FactsOf(const json& key, const TokenizedSources& tokenized) {
  const DataCounts& counts = tokenized.counts;
  return {{"key", key},
          {"first_lines", tokenized.first_lines},
          {"lines", counts.lines},
          {"truncated_rows", counts.truncated_rows},
          {"dropped_rows", counts.dropped_rows},
          {"tokens", counts.tokens},
          {"trained_tokens", counts.trained_tokens},
          {"longest_row", counts.longest_row}};
}

DataCounts CountsOf(const json& facts) {
  DataCounts counts;
  counts.lines = facts.at("lines");
  counts.truncated_rows = facts.at("truncated_rows");
  counts.dropped_rows = facts.at("dropped_rows");
  counts.tokens = facts.at("tokens");
  counts.trained_tokens = facts.at("trained_tokens");
  counts.longest_row = facts.at("longest_row");
  return counts;
}

std::vector<std::string> WarningsOf(const DataCounts& counts, std::int64_t sequence_len) {
  const std::string of = " of " + std::to_string(counts.lines) + " rows ";
  std::vector<std::string> warnings;
  if (counts.truncated_rows > 0) {
    warnings.push_back(std::to_string(counts.truncated_rows) + of +
                       "are longer than sequence_len " + std::to_string(sequence_len) +
                       " and keep only their start (the longest has " +
                       std::to_string(counts.longest_row) + " tokens)");
  }
  if (counts.dropped_rows > 0) {
    warnings.push_back(std::to_string(counts.dropped_rows) + of +
                       "have no trained token within sequence_len and are left out");
  }
  return warnings;
}

void CheckOptions(const DataOptions& options) {
  if (options.sources.empty()) throw Error(Reason::kBadSpec, "datasets is empty; name a file");
  if (options.sequence_len < 2) {
    throw Error(Reason::kBadSpec, "sequence_len is " + std::to_string(options.sequence_len) +
                                      "; at least 2 tokens are needed to train one");
  }
}

}  // namespace

DataType ParseDataType(const std::string& name) {
  if (name == "chat") return DataType::kChat;
  if (name == "completion") return DataType::kCompletion;
  if (name == "text") return DataType::kText;
  if (name == "pretokenized") return DataType::kPretokenized;
  throw Error(Reason::kBadSpec, "data set type \"" + name +
                                    "\" is not known; use chat, completion, text or pretokenized");
}

DataOptions DataOptionsFromSpec(const nlohmann::json& spec, std::int64_t vocab_size,
                                const std::string& cache_directory) {
  DataOptions options;
  try {
    for (const json& source : spec.at("datasets")) {
      options.sources.push_back({source.at("path").get<std::string>(),
                                 ParseDataType(source.at("type").get<std::string>()),
                                 source.value("digest", std::string()),
                                 source.contains("name") && source["name"].is_string()
                                     ? source["name"].get<std::string>()
                                     : std::string()});
    }
    options.sequence_len = spec.value("sequence_len", options.sequence_len);
    options.val_set_size = spec.value("val_set_size", options.val_set_size);
    options.seed = spec.value("seed", options.seed);
    options.threads = spec.value("threads", options.threads);
  } catch (const json::exception& error) {
    throw Error(Reason::kBadSpec,
                std::string("the spec's data part is malformed: ") + error.what());
  }
  options.vocab_size = vocab_size;
  options.cache_directory = cache_directory;
  return options;
}

DataSplit LoadData(const DataOptions& given, const Tokenizer* tokenizer,
                   const std::string& tokenizer_digest) {
  DataOptions options = given;
  CheckOptions(options);
  for (DataSource& source : options.sources) {
    if (source.digest.empty()) source.digest = Sha256OfFile(source.path);
  }
  const json key = KeyOf(options, tokenizer_digest);
  const std::string key_digest = Sha256Of(key.dump());
  std::string cache_path;
  if (!options.cache_directory.empty()) {
    const std::string hex = key_digest.substr(key_digest.find(':') + 1);
    cache_path = (std::filesystem::path(options.cache_directory) / (hex + ".rows")).string();
  }

  DataSplit result;
  std::shared_ptr<const RowStore> store;
  if (!cache_path.empty()) store = RowStore::Open(cache_path);
  result.from_cache = store != nullptr && store->facts().value("key", json()) == key;
  if (!result.from_cache) {
    RowStoreWriter writer(cache_path);
    const TokenizedSources tokenized = TokenizeSources(options, tokenizer, &writer);
    store = writer.Finish(FactsOf(key, tokenized));
  }
  result.counts = CountsOf(store->facts());
  result.warnings = WarningsOf(result.counts, options.sequence_len);

  auto names = std::make_shared<Names>();
  for (const DataSource& source : options.sources) names->paths.push_back(source.shown());
  names->first_lines = store->facts().at("first_lines").get<std::vector<std::int64_t>>();
  RowSplit split = SplitRows(store->rows(), options.val_set_size, options.seed);
  result.train = std::make_unique<RowView>(store, std::move(split.train), names);
  result.held_out = std::make_unique<RowView>(store, std::move(split.held_out), names);
  result.digest = Sha256Of(
      json({{"rows", key}, {"val_set_size", options.val_set_size}, {"seed", options.seed}}).dump());
  return result;
}

}  // namespace offshoot::trainer
