// From JSONL files to rows of token ids: what a job trains on and what it holds out.
//
//   files -> lines (jsonl_reader) -> one example each (row_format) -> ids and labels (row_encoder)
//         -> rows of this job, cut at sequence_len -> train part and held-out part (split)
//
// Tokenising runs on several threads and is done once: the result is a cache file, keyed by the
// digests of data and tokenizer and the keys of the spec that matter, and mapped on the next start.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "trainer/tokenizer/tokenizer.h"

namespace offshoot::trainer {

enum class DataType { kChat, kCompletion, kText, kPretokenized };

// "chat", "completion", "text", "pretokenized". Throws Error(kBadSpec) naming the four.
DataType ParseDataType(const std::string& name);

struct DataSource {
  std::string path;
  DataType type = DataType::kChat;
  std::string digest;  // "sha256:..."; computed when empty
  std::string name = {};  // what messages call it; empty: the path
  const std::string& shown() const { return name.empty() ? path : name; }
};

struct DataOptions {
  std::vector<DataSource> sources;
  std::int64_t sequence_len = 2048;  // tokens; a longer row keeps its start
  std::int64_t vocab_size = 0;       // of the base model; a larger token id is an error
  double val_set_size = 0;           // below 1: a fraction of the rows; from 1 on: a count
  std::uint64_t seed = 0;            // of the split
  int threads = 1;                   // that tokenise
  std::string cache_directory;       // empty: no cache file
};

// Reads datasets, sequence_len, val_set_size, seed and threads of a resolved spec
// (docs/trainer-protocol.md).
DataOptions DataOptionsFromSpec(const nlohmann::json& spec, std::int64_t vocab_size,
                                const std::string& cache_directory);

// What happened to the lines on their way; shown by preflight.
struct DataCounts {
  std::int64_t lines = 0;           // examples read
  std::int64_t truncated_rows = 0;  // cut at sequence_len
  std::int64_t dropped_rows = 0;    // no trained token left
  std::int64_t tokens = 0;          // of all kept rows
  std::int64_t trained_tokens = 0;
  std::int64_t longest_row = 0;  // tokens, before cutting
  bool operator==(const DataCounts&) const = default;
};

// Rows of tokens; immutable and thread-safe. Ids and labels are views into one mapping or one
// vector, which the object owns.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  // Not shifted: labels[t] is ids[t] if token t is trained, else kIgnoredLabel. labels[0] is always
  // kIgnoredLabel, since nothing predicts the first token.
  virtual std::span<const std::int32_t> ids(std::int64_t row) const = 0;
  virtual std::span<const std::int32_t> labels(std::int64_t row) const = 0;
  virtual std::int64_t trained_tokens(std::int64_t row) const = 0;
  // 0-based line of the row, counted over all files of the job one after the other: for messages.
  virtual std::int64_t line(std::int64_t row) const = 0;
  // "data.jsonl line 7", for messages.
  virtual std::string Describe(std::int64_t row) const = 0;
};

struct DataSplit {
  std::unique_ptr<Dataset> train;
  std::unique_ptr<Dataset> held_out;  // size() is 0 without val_set_size; never null
  DataCounts counts;                  // of both parts together
  std::vector<std::string> warnings;  // for preflight: one sentence each
  std::string digest;  // of sources, tokenizer and options: two equal ones mean equal rows
  bool from_cache = false;
};

// Throws Error(kBadData) with file, line and remedy; Error(kBadModel) if a chat template is needed
// and there is none, or none with spans that can be found.
// tokenizer_digest: any digest that changes with the tokenizer (the base model's digest will do).
// No two equal rows, and no two rows with an equal trained part, are in different parts. If the
// split leaves nothing to train on, that is an error too.
// tokenizer: null if the base has none; then only pretokenized rows can be read.
DataSplit LoadData(const DataOptions& options, const Tokenizer* tokenizer,
                   const std::string& tokenizer_digest);

}  // namespace offshoot::trainer
