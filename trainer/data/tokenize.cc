#include "trainer/data/tokenize.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <string>
#include <thread>

#include "trainer/data/jsonl_reader.h"
#include "trainer/data/row_encoder.h"
#include "trainer/data/token_batch.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

// Bounds of a batch of lines that is held in memory.
constexpr std::size_t kBatchLines = 4096;
constexpr std::size_t kBatchBytes = 16u << 20;

struct Outcome {
  TokenRow row;
  std::exception_ptr error;
};

// Runs body(i) for i in [0, count) on `threads` threads. body must not throw.
template <typename Body>
void ParallelFor(std::size_t count, int threads, const Body& body) {
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) body(i);
  };
  std::vector<std::jthread> others;
  const auto wanted = std::min<std::size_t>(static_cast<std::size_t>(std::max(threads, 1)), count);
  for (std::size_t i = 1; i < wanted; ++i) others.emplace_back(work);
  work();
}

bool ReadBatch(JsonlReader* reader, std::vector<JsonlLine>* lines) {
  lines->clear();
  std::size_t bytes = 0;
  JsonlLine line;
  while (lines->size() < kBatchLines && bytes < kBatchBytes && reader->Next(&line)) {
    bytes += line.text.size();
    lines->push_back(std::move(line));
  }
  return !lines->empty();
}

[[noreturn]] void Rethrow(const std::exception_ptr& error, const std::string& path,
                          std::int64_t line_number, std::int64_t row) {
  const std::string place = path + " line " + std::to_string(line_number) + ": ";
  try {
    std::rethrow_exception(error);
  } catch (const Error& original) {
    Error named(original.reason, place + original.what());
    named.rows = {row};
    throw named;
  } catch (const std::exception& original) {
    throw Error(Reason::kBadData, place + original.what());
  }
}

// Cuts the row at sequence_len, counts it, and writes it if something is left to train.
void Keep(TokenRow row, std::int64_t sequence_len, std::uint64_t line, DataCounts* counts,
          RowStoreWriter* writer) {
  const auto limit = static_cast<std::size_t>(sequence_len);
  counts->lines += 1;
  counts->longest_row = std::max(counts->longest_row, static_cast<std::int64_t>(row.ids.size()));
  if (row.ids.size() > limit) {
    counts->truncated_rows += 1;
    row.ids.resize(limit);
    row.labels.resize(limit);
  }
  const auto trained = std::count_if(row.labels.begin(), row.labels.end(),
                                     [](std::int32_t label) { return label != kIgnoredLabel; });
  if (trained == 0) {
    counts->dropped_rows += 1;
    return;
  }
  counts->tokens += static_cast<std::int64_t>(row.ids.size());
  counts->trained_tokens += trained;
  writer->Add(row, line);
}

std::string ShownNames(const std::vector<DataSource>& sources) {
  std::string text;
  for (const DataSource& source : sources) text += (text.empty() ? "" : ", ") + source.shown();
  return text;
}

}  // namespace

TokenizedSources TokenizeSources(const DataOptions& options, const Tokenizer* tokenizer,
                                 RowStoreWriter* writer) {
  TokenizedSources result;
  const RowEncoder encoder(tokenizer, options.vocab_size);
  std::int64_t first_line = 0;
  for (const DataSource& source : options.sources) {
    encoder.CheckTokenizer(source.type);
    result.first_lines.push_back(first_line);
    JsonlReader reader(source.path, source.shown());
    std::vector<JsonlLine> lines;
    std::int64_t last_number = 0;
    while (ReadBatch(&reader, &lines)) {
      std::vector<Outcome> outcomes(lines.size());
      ParallelFor(lines.size(), options.threads, [&](std::size_t i) {
        try {
          outcomes[i].row = encoder.Encode(source.type, ParseJsonLine(lines[i].text));
        } catch (...) {
          outcomes[i].error = std::current_exception();
        }
      });
      for (std::size_t i = 0; i < lines.size(); ++i) {
        const std::int64_t line = first_line + lines[i].number - 1;
        if (outcomes[i].error) Rethrow(outcomes[i].error, source.shown(), lines[i].number, line);
        Keep(std::move(outcomes[i].row), options.sequence_len, static_cast<std::uint64_t>(line),
             &result.counts, writer);
      }
      last_number = lines.back().number;
    }
    if (last_number == 0) {
      throw Error(Reason::kBadData, "data set " + source.shown() + " is empty");
    }
    first_line += last_number;
  }
  if (writer->size() == 0) {
    throw Error(Reason::kBadData,
                "no row of " + ShownNames(options.sources) + " is left to train on: of " +
                    std::to_string(result.counts.lines) + " rows " +
                    std::to_string(result.counts.truncated_rows) + " were cut at sequence_len " +
                    std::to_string(options.sequence_len) + " and " +
                    std::to_string(result.counts.dropped_rows) +
                    " have no trained token (the longest has " +
                    std::to_string(result.counts.longest_row) +
                    " tokens); raise sequence_len or mark some tokens as trained");
  }
  return result;
}

}  // namespace offshoot::trainer
