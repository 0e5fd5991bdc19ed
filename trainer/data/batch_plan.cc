#include "trainer/data/batch_plan.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "trainer/data/counter_random.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

// Streams of random numbers of one seed; an epoch has kStreamsPerEpoch of them.
constexpr std::uint64_t kStreamsPerEpoch = 2;
constexpr std::uint64_t kOrderStream = 0;
constexpr std::uint64_t kMixStream = 1;
// Rows of this many steps are sorted by length together; rows of this many are packed together.
constexpr std::int64_t kGroupedSteps = 50;
constexpr std::int64_t kPackedRows = 1 << 16;

CounterRandom Random(const BatchOptions& options, std::int64_t epoch, std::uint64_t stream) {
  return CounterRandom(options.seed, static_cast<std::uint64_t>(epoch) * kStreamsPerEpoch + stream);
}

std::int64_t Length(const Dataset& dataset, std::int64_t row) {
  return static_cast<std::int64_t>(dataset.ids(row).size());
}

std::int64_t MicroBatchesPerStep(const BatchOptions& options) {
  return options.accumulation *
         (options.planned_ranks > 0 ? options.planned_ranks : options.world_size);
}

std::int64_t CeilDivide(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::vector<std::int64_t> RowOrder(const Dataset& dataset, const BatchOptions& options,
                                   std::int64_t epoch) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(dataset.size()));
  std::iota(order.begin(), order.end(), 0);
  if (options.shuffle) Random(options, epoch, kOrderStream).Shuffle(&order);
  return order;
}

std::vector<MicroBatch> Chunk(const std::vector<std::int64_t>& rows, std::int64_t size) {
  std::vector<MicroBatch> chunks;
  for (auto begin = rows.begin(); begin < rows.end();) {
    const auto end = begin + std::min<std::int64_t>(size, rows.end() - begin);
    chunks.emplace_back(begin, end);
    begin = end;
  }
  return chunks;
}

// Micro-batches of rows of like length. The length decides only inside a window of kGroupedSteps
// steps, and the window's micro-batches are mixed, so that a step sees all lengths.
std::vector<MicroBatch> GroupByLength(const Dataset& dataset, const BatchOptions& options,
                                      std::int64_t epoch, std::vector<std::int64_t> order) {
  const CounterRandom random = Random(options, epoch, kMixStream);
  const std::int64_t window =
      kGroupedSteps * MicroBatchesPerStep(options) * options.rows_per_micro_batch;
  std::vector<MicroBatch> result;
  std::uint64_t draws = 0;
  for (std::int64_t begin = 0; begin < dataset.size(); begin += window) {
    const std::int64_t end = std::min(begin + window, dataset.size());
    std::stable_sort(order.begin() + begin, order.begin() + end,
                     [&dataset](std::int64_t a, std::int64_t b) {
                       return Length(dataset, a) > Length(dataset, b);
                     });
    std::vector<MicroBatch> batches =
        Chunk({order.begin() + begin, order.begin() + end}, options.rows_per_micro_batch);
    // Fisher-Yates, with the counter running on from window to window.
    for (std::size_t i = batches.size(); i-- > 1;) {
      std::swap(batches[i], batches[random.Below(draws++, i + 1)]);
    }
    std::move(batches.begin(), batches.end(), std::back_inserter(result));
  }
  return result;
}

// Best fit decreasing: the longest row first, each into the fullest block that still takes it.
std::vector<MicroBatch> Pack(const Dataset& dataset, std::int64_t capacity,
                             std::vector<std::int64_t> rows) {
  std::stable_sort(rows.begin(), rows.end(), [&dataset](std::int64_t a, std::int64_t b) {
    return Length(dataset, a) > Length(dataset, b);
  });
  std::vector<MicroBatch> blocks;
  std::map<std::int64_t, std::vector<std::size_t>> by_room;  // free tokens -> blocks, oldest first
  for (const std::int64_t row : rows) {
    const std::int64_t length = Length(dataset, row);
    const auto fit = by_room.lower_bound(length);
    std::size_t block = blocks.size();
    std::int64_t room = capacity;
    if (fit == by_room.end()) {
      blocks.emplace_back();
    } else {
      block = fit->second.back();
      room = fit->first;
      fit->second.pop_back();
      if (fit->second.empty()) by_room.erase(fit);
    }
    blocks[block].push_back(row);
    if (room > length) by_room[room - length].push_back(block);
  }
  return blocks;
}

std::vector<MicroBatch> PackedMicroBatches(const Dataset& dataset, const BatchOptions& options,
                                           std::int64_t epoch,
                                           const std::vector<std::int64_t>& order) {
  std::vector<MicroBatch> blocks;
  for (const MicroBatch& window : Chunk(order, kPackedRows)) {
    std::vector<MicroBatch> packed = Pack(dataset, options.sequence_len, window);
    std::move(packed.begin(), packed.end(), std::back_inserter(blocks));
  }
  // Packing puts the long rows first; mixing takes that back.
  Random(options, epoch, kMixStream).Shuffle(&blocks);
  std::vector<MicroBatch> result;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (i % static_cast<std::size_t>(options.rows_per_micro_batch) == 0) result.emplace_back();
    result.back().insert(result.back().end(), blocks[i].begin(), blocks[i].end());
  }
  return result;
}

void Check(const Dataset& dataset, const BatchOptions& options) {
  const auto positive = [](const char* key, std::int64_t value) {
    if (value >= 1) return;
    throw Error(Reason::kBadSpec,
                std::string(key) + " is " + std::to_string(value) + "; it must be at least 1");
  };
  positive("per_device_train_batch_size", options.rows_per_micro_batch);
  positive("gradient_accumulation_steps", options.accumulation);
  positive("world_size", options.world_size);
  positive("sequence_len", options.sequence_len);
  if (dataset.size() == 0) throw Error(Reason::kBadData, "there are no rows to train on");
}

// Cuts rows into micro-batches as the options bound them: by tokens when packing, else by rows.
std::vector<MicroBatch> Cut(const std::vector<std::int64_t>& rows,
                            const std::vector<std::int64_t>& tokens, const BatchOptions& options) {
  std::vector<MicroBatch> result;
  const std::int64_t token_limit = options.rows_per_micro_batch * options.sequence_len;
  std::int64_t in_batch = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const bool full = !result.empty() &&
                      (options.sample_packing ? in_batch + tokens[i] > token_limit
                                              : static_cast<std::int64_t>(result.back().size()) ==
                                                    options.rows_per_micro_batch);
    if (result.empty() || full) {
      result.emplace_back();
      in_batch = 0;
    }
    result.back().push_back(rows[i]);
    in_batch += tokens[i];
  }
  return result;
}

}  // namespace

BatchOptions BatchOptionsFromSpec(const nlohmann::json& spec, std::int64_t world_size) {
  BatchOptions options;
  try {
    options.rows_per_micro_batch =
        spec.value("per_device_train_batch_size", options.rows_per_micro_batch);
    options.accumulation = spec.value("gradient_accumulation_steps", options.accumulation);
    options.seed = spec.value("seed", options.seed);
    options.shuffle = spec.value("shuffle", options.shuffle);
    options.group_by_length = spec.value("group_by_length", options.group_by_length);
    options.sample_packing = spec.value("sample_packing", options.sample_packing);
    options.sequence_len = spec.value("sequence_len", options.sequence_len);
    if (const auto resources = spec.find("resources");
        resources != spec.end() && resources->is_object()) {
      options.planned_ranks = resources->value("ranks", options.planned_ranks);
    }
  } catch (const nlohmann::json::exception& error) {
    throw Error(Reason::kBadSpec,
                std::string("the spec's batch part is malformed: ") + error.what());
  }
  options.world_size = world_size;
  return options;
}

BatchPlanner::BatchPlanner(const Dataset& dataset, const BatchOptions& options)
    : dataset_(dataset), options_(options) {
  Check(dataset, options);
}

void BatchPlanner::PlanEpoch(std::int64_t epoch) {
  if (epoch == planned_epoch_) return;
  std::vector<std::int64_t> order = RowOrder(dataset_, options_, epoch);
  std::vector<MicroBatch> batches;
  if (options_.sample_packing) {
    batches = PackedMicroBatches(dataset_, options_, epoch, order);
  } else if (options_.group_by_length) {
    batches = GroupByLength(dataset_, options_, epoch, std::move(order));
  } else {
    batches = Chunk(order, options_.rows_per_micro_batch);
  }
  const auto per_step = static_cast<std::size_t>(MicroBatchesPerStep(options_));
  steps_.clear();
  for (std::size_t i = 0; i < batches.size(); ++i) {
    if (i % per_step == 0) steps_.emplace_back();
    StepPlan& step = steps_.back();
    for (const std::int64_t row : batches[i]) {
      step.trained_tokens += dataset_.trained_tokens(row);
      step.row_tokens.push_back(Length(dataset_, row));
    }
    step.micro_batches.push_back(std::move(batches[i]));
  }
  planned_epoch_ = epoch;
}

std::int64_t BatchPlanner::StepsInEpoch(std::int64_t epoch) {
  if (!options_.sample_packing) {
    const std::int64_t micro_batches = CeilDivide(dataset_.size(), options_.rows_per_micro_batch);
    return CeilDivide(micro_batches, MicroBatchesPerStep(options_));
  }
  PlanEpoch(epoch);
  return static_cast<std::int64_t>(steps_.size());
}

const StepPlan& BatchPlanner::Step(const DataCursor& cursor) {
  PlanEpoch(cursor.epoch);
  return steps_.at(static_cast<std::size_t>(cursor.step_in_epoch));
}

DataCursor BatchPlanner::Next(const DataCursor& cursor) {
  if (cursor.step_in_epoch + 1 < StepsInEpoch(cursor.epoch)) {
    return {cursor.epoch, cursor.step_in_epoch + 1};
  }
  return {cursor.epoch + 1, 0};
}

std::int64_t BatchPlanner::TotalSteps(double num_train_epochs, std::int64_t max_steps) {
  if (max_steps > 0) return max_steps;
  if (!(num_train_epochs > 0)) {
    throw Error(Reason::kBadSpec, "num_train_epochs must be above 0 when max_steps is not given");
  }
  const double whole = std::floor(num_train_epochs);
  const double rest = num_train_epochs - whole;
  const auto epochs = static_cast<std::int64_t>(whole);
  std::int64_t total = 0;
  if (options_.sample_packing) {
    for (std::int64_t epoch = 0; epoch < epochs; ++epoch) total += StepsInEpoch(epoch);
  } else {
    total = epochs * StepsInEpoch(0);
  }
  if (rest > 0) {
    // A tiny excess over a whole step is rounding of the fraction, not a wish for one more.
    constexpr double kSlack = 1e-9;
    total += static_cast<std::int64_t>(
        std::ceil(rest * static_cast<double>(StepsInEpoch(epochs)) - kSlack));
  }
  return std::max<std::int64_t>(total, 1);
}

std::vector<MicroBatch> RankShare(const StepPlan& step, const BatchOptions& options,
                                  std::int64_t rank, const std::vector<RankSpeed>& speeds) {
  if (options.world_size == 1) return step.micro_batches;
  const auto ranks = static_cast<std::size_t>(options.world_size);
  const std::vector<RankSpeed> all =
      speeds.empty() ? std::vector<RankSpeed>(ranks) : std::vector<RankSpeed>(speeds);
  std::vector<std::size_t> order(step.row_tokens.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&step](std::size_t a, std::size_t b) {
    return step.row_tokens[a] > step.row_tokens[b];
  });
  std::vector<std::int64_t> load(ranks);
  for (std::size_t r = 0; r < ranks; ++r) load[r] = all.at(r).fixed;
  std::vector<std::size_t> owner(order.size());
  for (const std::size_t row : order) {
    const std::int64_t length = step.row_tokens[row];
    std::size_t best = 0;
    for (std::size_t r = 1; r < ranks; ++r) {
      // (load + length) / speed, compared without dividing.
      if ((load[r] + length) * all[best].speed < (load[best] + length) * all[r].speed) best = r;
    }
    load[best] += length;
    owner[row] = best;
  }
  std::vector<std::int64_t> own;
  std::vector<std::int64_t> own_tokens;
  std::size_t position = 0;
  for (const MicroBatch& batch : step.micro_batches) {
    for (const std::int64_t row : batch) {
      if (owner[position] == static_cast<std::size_t>(rank)) {
        own.push_back(row);
        own_tokens.push_back(step.row_tokens[position]);
      }
      ++position;
    }
  }
  return Cut(own, own_tokens, options);
}

TokenBatch MakeTokenBatch(const Dataset& dataset, const MicroBatch& rows) {
  TokenBatch batch;
  batch.row_offsets.push_back(0);
  for (const std::int64_t row : rows) {
    batch.row_offsets.push_back(batch.row_offsets.back() + Length(dataset, row));
  }
  const std::int64_t total = batch.row_offsets.back();
  batch.tokens = at::empty({total}, at::kLong);
  batch.positions = at::empty({total}, at::kLong);
  batch.labels = at::empty({total}, at::kLong);
  batch.rows = rows;
  auto* tokens = batch.tokens.mutable_data_ptr<std::int64_t>();
  auto* positions = batch.positions.mutable_data_ptr<std::int64_t>();
  auto* labels = batch.labels.mutable_data_ptr<std::int64_t>();
  for (const std::int64_t row : rows) {
    const std::span<const std::int32_t> ids = dataset.ids(row);
    const std::span<const std::int32_t> row_labels = dataset.labels(row);
    for (std::size_t t = 0; t < ids.size(); ++t) {
      *tokens++ = ids[t];
      *positions++ = static_cast<std::int64_t>(t);
      *labels++ = t + 1 < ids.size() ? row_labels[t + 1] : kIgnoredLabel;
    }
    batch.trained_tokens += dataset.trained_tokens(row);
  }
  return batch;
}

std::vector<MicroBatch> SequentialBatches(const Dataset& dataset, std::int64_t rows_per_batch,
                                          std::int64_t max_tokens) {
  std::vector<MicroBatch> result;
  std::int64_t tokens = 0;
  for (std::int64_t row = 0; row < dataset.size(); ++row) {
    const std::int64_t length = Length(dataset, row);
    if (result.empty() || static_cast<std::int64_t>(result.back().size()) >= rows_per_batch ||
        tokens + length > max_tokens) {
      result.emplace_back();
      tokens = 0;
    }
    result.back().push_back(row);
    tokens += length;
  }
  return result;
}

}  // namespace offshoot::trainer
