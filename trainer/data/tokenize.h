// Tokenises all sources of a job on several threads, in the order of their lines.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/data/dataset.h"
#include "trainer/data/row_store.h"

namespace offshoot::trainer {

struct TokenizedSources {
  DataCounts counts;
  std::vector<std::int64_t> first_lines;  // of each source, 0-based and counted over all
};

// Rows without a trained token are counted, not written. Lines are read and tokenised in batches of
// bounded size, so memory does not grow with the data. Throws the error of the first wrong line,
// with file and line number; Error(kBadData) with the counts if no row is left.
TokenizedSources TokenizeSources(const DataOptions& options, const Tokenizer* tokenizer,
                                 RowStoreWriter* writer);

}  // namespace offshoot::trainer
