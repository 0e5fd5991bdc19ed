#include "trainer/data/split.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "trainer/data/counter_random.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::uint64_t kSplitStream = 0x53504C4954;  // "SPLIT"

struct Group {
  std::uint64_t order;
  std::uint64_t key;
  std::int64_t rows;
};

std::int64_t WantedRows(double val_set_size, std::int64_t rows) {
  if (val_set_size >= 1) return std::llround(val_set_size);
  return std::max<std::int64_t>(1, std::llround(val_set_size * static_cast<double>(rows)));
}

std::string Number(double value) {
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

}  // namespace

RowSplit SplitRows(std::span<const RowEntry> rows, double val_set_size, std::uint64_t seed) {
  RowSplit split;
  const auto count = static_cast<std::int64_t>(rows.size());
  if (!(val_set_size >= 0)) {
    throw Error(Reason::kBadSpec, "val_set_size is " + Number(val_set_size) +
                                      "; give a fraction below 1 or a number of rows");
  }
  std::unordered_set<std::uint64_t> held_out;
  if (val_set_size > 0) {
    const std::int64_t wanted = WantedRows(val_set_size, count);
    const CounterRandom random(seed, kSplitStream);
    std::unordered_map<std::uint64_t, std::int64_t> sizes;
    for (const RowEntry& row : rows) ++sizes[row.group];
    std::vector<Group> groups;
    groups.reserve(sizes.size());
    for (const auto& [key, size] : sizes) groups.push_back({random.Number(key), key, size});
    std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
      return a.order != b.order ? a.order < b.order : a.key < b.key;
    });
    if (wanted >= count || groups.size() < 2) {
      throw Error(Reason::kBadSpec,
                  "val_set_size " + Number(val_set_size) + " of " + std::to_string(count) +
                      " rows (" + std::to_string(groups.size()) +
                      " with different trained parts) leaves nothing to train on; make it smaller");
    }
    std::int64_t taken = 0;
    for (const Group& group : groups) {
      if (taken + group.rows > wanted) continue;
      taken += group.rows;
      held_out.insert(group.key);
      if (taken == wanted) break;
    }
    if (held_out.empty()) {
      const auto smallest =
          std::min_element(groups.begin(), groups.end(),
                           [](const Group& a, const Group& b) { return a.rows < b.rows; });
      held_out.insert(smallest->key);
    }
  }
  for (std::int64_t row = 0; row < count; ++row) {
    const bool held = held_out.contains(rows[static_cast<std::size_t>(row)].group);
    (held ? split.held_out : split.train).push_back(row);
  }
  return split;
}

}  // namespace offshoot::trainer
