// Which rows are held out: a pure function of the rows' trained parts, the wish and the seed. It
// does not depend on the order of the rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trainer/data/row_store.h"

namespace offshoot::trainer {

struct RowSplit {
  std::vector<std::int64_t> train;  // row numbers, ascending
  std::vector<std::int64_t> held_out;
};

// Rows with an equal group (an equal trained part, so equal rows too) stay together. Groups are
// taken in the order of a seeded hash while they fit into the wish; the held-out part is never
// larger than it, except that one group is taken if none fits. Throws Error(kBadSpec) if no row
// would be left to train on, or none could be held out. val_set_size: below 1 a fraction of the
// rows (rounded, at least one row), from 1 on a count.
RowSplit SplitRows(std::span<const RowEntry> rows, double val_set_size, std::uint64_t seed);

}  // namespace offshoot::trainer
