// What a job's memory means for its batch: how much the job needs as it is, what would need less,
// and which micro-batch `per_device_train_batch_size: auto` takes. Functions are thread-safe.
//
// The rows of an optimizer step never depend on memory. With `auto` a step has
// kAutoRows * gradient_accumulation_steps rows on each planned rank; only into how many
// micro-batches they are cut, and which activations are computed again, is chosen: the largest
// micro-batch that fits, computing nothing again as long as a micro-batch keeps the machine busy,
// then the feed-forward parts alone, then whole layers.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/data/batch_plan.h"
#include "trainer/data/dataset.h"
#include "trainer/events.h"
#include "trainer/lora/lora_set.h"
#include "trainer/memory_estimate.h"
#include "trainer/models/decoder.h"
#include "trainer/parallel/collective.h"
#include "trainer/train_spec.h"

namespace offshoot::trainer {

// The default of per_device_train_batch_size, so that `auto` trains the steps of a job that does
// not name it.
inline constexpr std::int64_t kAutoRows = 8;

struct BatchChoice {
  std::int64_t rows = 0;          // per_device_train_batch_size
  std::int64_t accumulation = 0;  // gradient_accumulation_steps
  Recomputed recomputed = Recomputed::kNothing;
  std::int64_t tokens = 0;  // of its largest micro-batch
  MemoryEstimate estimate;
};

// All there is to know of a job's memory but the batch: weights, adapter, dtype, device.
MemoryShape ShapeWithoutBatch(const TrainSpec& spec, const Decoder& decoder,
                              const LoraSet& adapters);

// Fills tokens and longest_row: the largest micro-batch of the first epoch's first steps (which
// rows meet depends on the shuffle). Without data (null) all rows have sequence_len tokens.
void MeasureBatch(const Dataset* data, const BatchOptions& options, MemoryShape& shape);

// What `auto` may take, best first: fewer recomputations, then larger micro-batches.
std::vector<BatchChoice> BatchChoices(const TrainSpec& spec, const ArchSpec& arch,
                                      const MemoryShape& shape, const Dataset* data,
                                      const BatchOptions& options);

// The first choice that fits in free_bytes on every rank (the last if none does); collective.
// free_bytes: what this rank's process may take in all; 0: not known, then the default's rows.
BatchChoice ChooseBatch(const std::vector<BatchChoice>& choices, std::int64_t free_bytes,
                        Collective& collective);

// Writes the choice into the spec, its resolved part included.
void SetBatch(const BatchChoice& choice, TrainSpec& spec);

// The spec with the batch that it trains with: chosen if it asks for that (the checkpoint's choice
// if it resumes one), said on stderr and as the event `batch`; else as it is. Collective.
TrainSpec WithChosenBatch(TrainSpec spec, const Decoder& decoder, const Dataset& data,
                          Collective& collective, EventWriter& events);

// {"cpu": {"bytes", "parts", "instead": [{"change", "bytes"}]}, "cuda": {...}}: what the job needs
// on each kind of device, and what would need less, the least change first.
nlohmann::json MemoryReport(const TrainSpec& spec, const Decoder& decoder, const LoraSet& adapters,
                            const Dataset* data, const BatchOptions& options);

// What this process may take in all: the device's memory if the spec says it, and on CPUs no more
// than what is free now.
std::int64_t MemoryForThisProcess(const TrainSpec& spec);

}  // namespace offshoot::trainer
