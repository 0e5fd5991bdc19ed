#include "trainer/memory_plan.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include "trainer/checkpoint.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kMaxStepsLookedAt = 2000;
// Tokens of a micro-batch from which on smaller ones cost less than computing activations again
// (figures in bench/README.md; none of a GPU yet).
constexpr std::int64_t kBusyTokensOnCpu = 256;
constexpr std::int64_t kBusyTokensElsewhere = 1024;
// The estimate is good to so much (memory_measured_test.cc).
constexpr double kEstimateMargin = 1.15;
// What needs less is looked for down to so few rows.
constexpr std::int64_t kMostAlternatives = 8;

std::int64_t RowsOfStep(const TrainSpec& spec) {
  return (spec.automatic_batch ? kAutoRows : spec.per_device_train_batch_size) *
         spec.gradient_accumulation_steps;
}

std::int64_t ModuleElements(const Decoder::LinearModule& module) {
  return module.in_features * module.out_features;
}

// The bytes of all weights if the linear layers were kept so.
std::int64_t WeightBytes(const Decoder& decoder, Quantisation kept, std::int64_t element) {
  std::int64_t bytes = decoder.parameter_count() * element;
  if (kept == Quantisation::kNone) return bytes;
  for (const Decoder::LinearModule& module : decoder.linear_modules()) {
    const std::int64_t count = ModuleElements(module);
    bytes += QuantisedBytes(count, module.out_features, kept) - count * element;
  }
  return bytes;
}

// The most of a quantised base that is dequantised at one time, gate and up together: on a CPU at
// most a piece of each; of experts, and elsewhere, all of both.
void MeasureWidened(const Decoder& decoder, MemoryShape& shape) {
  shape.widened_on_cpu_bytes = shape.widened_elsewhere_bytes = shape.summed_width = 0;
  for (const Decoder::LinearModule& module : decoder.linear_modules()) {
    const std::int64_t bytes = ModuleElements(module) * shape.bytes_per_element;
    const std::int64_t piece =
        module.group == ModuleGroup::kExpert ? bytes : std::min(bytes, kWidenedBytes);
    shape.widened_elsewhere_bytes = std::max(shape.widened_elsewhere_bytes, 2 * bytes);
    shape.widened_on_cpu_bytes = std::max(shape.widened_on_cpu_bytes, 2 * piece);
    if (piece < bytes) shape.summed_width = std::max(shape.summed_width, module.in_features);
  }
}

// The part of the experts that one token passes.
double ExpertPart(const ArchSpec& arch) {
  for (const LayerSpec& layer : arch.layers) {
    if (const auto* moe = std::get_if<MoeSpec>(&layer.feed_forward)) {
      return static_cast<double>(moe->router.chosen) /
             static_cast<double>(std::max<std::int64_t>(1, moe->router.experts));
    }
  }
  return 1.0;
}

const char* ActivationWords(Recomputed recomputed) {
  switch (recomputed) {
    case Recomputed::kNothing:
      return "activations kept";
    case Recomputed::kFeedForward:
      return "feed-forward activations computed again";
    case Recomputed::kLayers:
      return "activations computed again";
  }
  return "";
}

// The choice that a checkpoint was made with.
BatchChoice ChoiceOf(const nlohmann::json& identity) {
  BatchChoice choice;
  choice.rows = identity.at("per_device_train_batch_size");
  choice.accumulation = identity.at("gradient_accumulation_steps");
  choice.recomputed = ReadRecomputed(identity);
  return choice;
}

BatchOptions WithRows(BatchOptions options, std::int64_t rows, std::int64_t rows_of_step) {
  options.rows_per_micro_batch = rows;
  options.accumulation = std::max<std::int64_t>(1, rows_of_step / rows);
  return options;
}

struct Alternative {
  std::string change;
  MemoryShape shape;
};

std::string BatchWords(std::int64_t rows, std::int64_t rows_of_step) {
  return "per_device_train_batch_size: " + std::to_string(rows) +
         " with gradient_accumulation_steps: " +
         std::to_string(std::max<std::int64_t>(1, rows_of_step / rows));
}

std::vector<Alternative> Alternatives(const TrainSpec& spec, const Decoder& decoder,
                                      const MemoryShape& asked, const Dataset* data,
                                      const BatchOptions& options) {
  std::vector<Alternative> found;
  const std::int64_t rows_of_step = RowsOfStep(spec);
  if (!spec.automatic_batch) {
    for (std::int64_t rows = spec.per_device_train_batch_size / 2; rows >= 1; rows /= 2) {
      MemoryShape shape = asked;
      MeasureBatch(data, WithRows(options, rows, rows_of_step), shape);
      found.push_back({BatchWords(rows, rows_of_step), shape});
      if (static_cast<std::int64_t>(found.size()) >= kMostAlternatives) break;
    }
    if (spec.recomputed != Recomputed::kLayers) {
      MemoryShape shape = asked;
      std::string change = "recompute_granularity: full";
      if (spec.recomputed == Recomputed::kNothing) {
        shape.recomputed = Recomputed::kFeedForward;
        found.push_back(
            {"gradient_checkpointing: true with recompute_granularity: selective", shape});
        change = "gradient_checkpointing: true";
      }
      shape.recomputed = Recomputed::kLayers;
      found.push_back({change, shape});
      if (spec.per_device_train_batch_size > 1) {
        MeasureBatch(data, WithRows(options, 1, rows_of_step), shape);
        found.push_back({BatchWords(1, rows_of_step) + " and " + change, shape});
      }
    }
  }
  MemoryShape least = found.empty() ? asked : found.back().shape;
  const std::string rest = found.empty() ? "" : " and " + found.back().change;
  if (spec.quantisation == Quantisation::kNone) {
    if (spec.dtype == at::kFloat) {
      least.bytes_per_element = 2;
      least.weight_bytes = WeightBytes(decoder, Quantisation::kNone, 2);
      found.push_back({"dtype: bfloat16" + rest, least});
    }
    least.weight_bytes = WeightBytes(decoder, Quantisation::kNf4, least.bytes_per_element);
    MeasureWidened(decoder, least);
    found.push_back(
        {"load_in_4bit: true" + rest + (spec.dtype == at::kFloat ? " and dtype: bfloat16" : ""),
         least});
  }
  return found;
}

}  // namespace

MemoryShape ShapeWithoutBatch(const TrainSpec& spec, const Decoder& decoder,
                              const LoraSet& adapters) {
  MemoryShape shape = {.weight_bytes = decoder.weight_bytes(),
                       .adapter_parameters = adapters.parameter_count(),
                       .local_steps = spec.local_steps > 0,
                       .bytes_per_element = static_cast<std::int64_t>(c10::elementSize(spec.dtype)),
                       .recomputed = spec.recomputed,
                       .on_cpu = spec.device == "cpu"};
  double columns = 0;
  const double expert_part = ExpertPart(decoder.spec());
  for (std::size_t m = 0; m < decoder.linear_modules().size(); ++m) {
    const LoraWeights* weights = adapters.Find(m);
    if (weights == nullptr) continue;
    const bool expert = decoder.linear_modules()[m].group == ModuleGroup::kExpert;
    columns += static_cast<double>(weights->a.size(0)) * (expert ? expert_part : 1.0);
  }
  shape.low_rank_columns = static_cast<std::int64_t>(columns);
  if (spec.quantisation != Quantisation::kNone) MeasureWidened(decoder, shape);
  return shape;
}

void MeasureBatch(const Dataset* data, const BatchOptions& options, MemoryShape& shape) {
  shape.tokens = 0;
  shape.longest_row = 0;
  if (data == nullptr) {
    shape.longest_row = options.sequence_len;
    shape.tokens = options.rows_per_micro_batch * options.sequence_len;
    return;
  }
  BatchPlanner planner(*data, options);
  const std::int64_t steps = std::min(planner.StepsInEpoch(0), kMaxStepsLookedAt);
  for (std::int64_t step = 0; step < steps; ++step) {
    for (const MicroBatch& rows : RankShare(planner.Step({0, step}), options, 0)) {
      std::int64_t tokens = 0;
      for (const std::int64_t row : rows) {
        const auto length = static_cast<std::int64_t>(data->ids(row).size());
        tokens += length;
        shape.longest_row = std::max(shape.longest_row, length);
      }
      shape.tokens = std::max(shape.tokens, tokens);
    }
  }
}

std::vector<BatchChoice> BatchChoices(const TrainSpec& spec, const ArchSpec& arch,
                                      const MemoryShape& shape, const Dataset* data,
                                      const BatchOptions& options) {
  const std::int64_t rows_of_step = RowsOfStep(spec);
  std::vector<std::pair<std::int64_t, MemoryShape>> sizes;  // rows, and what they measure
  for (std::int64_t rows = rows_of_step; rows >= 1; --rows) {
    if (rows_of_step % rows != 0) continue;
    sizes.emplace_back(rows, shape);
    MeasureBatch(data, WithRows(options, rows, rows_of_step), sizes.back().second);
  }
  const std::int64_t busy_tokens = shape.on_cpu ? kBusyTokensOnCpu : kBusyTokensElsewhere;
  std::vector<BatchChoice> choices;
  for (const Recomputed recomputed :
       {Recomputed::kNothing, Recomputed::kFeedForward, Recomputed::kLayers}) {
    if (recomputed < spec.recomputed) continue;
    for (auto& [rows, measured] : sizes) {
      const bool busy = measured.tokens >= busy_tokens || rows == rows_of_step;
      if (!busy && recomputed != Recomputed::kLayers) continue;
      measured.recomputed = recomputed;
      choices.push_back(
          {rows, rows_of_step / rows, recomputed, measured.tokens, EstimateMemory(arch, measured)});
    }
  }
  return choices;
}

BatchChoice ChooseBatch(const std::vector<BatchChoice>& choices, std::int64_t free_bytes,
                        Collective& collective) {
  at::Tensor fits = at::zeros({static_cast<std::int64_t>(choices.size())}, at::kFloat);
  auto* values = fits.mutable_data_ptr<float>();
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const auto needed = static_cast<double>(choices[i].estimate.Total()) * kEstimateMargin;
    const bool known = free_bytes > 0;
    values[i] = (known ? needed <= static_cast<double>(free_bytes) : choices[i].rows <= kAutoRows)
                    ? 1.0F
                    : 0.0F;
  }
  if (collective.world_size() > 1) collective.AllReduceSum(fits);
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (values[i] >= static_cast<float>(collective.world_size())) return choices[i];
  }
  return choices.back();
}

void SetBatch(const BatchChoice& choice, TrainSpec& spec) {
  spec.per_device_train_batch_size = choice.rows;
  spec.gradient_accumulation_steps = choice.accumulation;
  spec.recomputed = choice.recomputed;
  spec.resolved["per_device_train_batch_size"] = choice.rows;
  spec.resolved["gradient_accumulation_steps"] = choice.accumulation;
  WriteRecomputed(choice.recomputed, spec.resolved);
  spec.resolved["automatic_batch"] = true;
}

TrainSpec WithChosenBatch(TrainSpec spec, const Decoder& decoder, const Dataset& data,
                          Collective& collective, EventWriter& events) {
  if (!spec.automatic_batch) return spec;
  BatchChoice choice;
  if (!spec.resume_from.empty()) {
    choice = ChoiceOf(ReadCheckpoint(spec.resume_from).state.identity);
  } else {
    const std::unique_ptr<LoraSet> adapters = spec.init_adapter.empty()
                                                  ? LoraSet::Create(decoder, spec.lora, spec.seed)
                                                  : LoraSet::Load(decoder, spec.init_adapter);
    const std::vector<BatchChoice> choices =
        BatchChoices(spec, decoder.spec(), ShapeWithoutBatch(spec, decoder, *adapters), &data,
                     BatchOptionsFromSpec(spec.resolved, collective.world_size()));
    choice = ChooseBatch(choices, MemoryForThisProcess(spec), collective);
  }
  SetBatch(choice, spec);
  if (collective.rank() == 0) {
    const std::int64_t bytes = choice.estimate.Total();
    std::fprintf(stderr, "batch: %lld rows at a time, %lld times a step, %s%s%s\n",
                 static_cast<long long>(choice.rows), static_cast<long long>(choice.accumulation),
                 ActivationWords(choice.recomputed),
                 bytes > 0 ? ", about " : ", as the checkpoint has it",
                 bytes > 0 ? FormatBytes(bytes).c_str() : "");
    nlohmann::json said = {{"per_device_train_batch_size", choice.rows},
                           {"gradient_accumulation_steps", choice.accumulation},
                           {"memory_bytes", bytes}};
    WriteRecomputed(choice.recomputed, said);
    events.Emit("batch", said);
  }
  return spec;
}

nlohmann::json MemoryReport(const TrainSpec& spec, const Decoder& decoder, const LoraSet& adapters,
                            const Dataset* data, const BatchOptions& options) {
  MemoryShape asked = ShapeWithoutBatch(spec, decoder, adapters);
  MeasureBatch(data, options, asked);
  if (spec.automatic_batch) {  // it takes as little as there is
    MeasureBatch(data, WithRows(options, 1, RowsOfStep(spec)), asked);
    asked.recomputed = Recomputed::kLayers;
  }
  const std::vector<Alternative> alternatives = Alternatives(spec, decoder, asked, data, options);
  nlohmann::json report;
  for (const char* kind : {"cpu", "cuda"}) {
    const auto estimate = [&](MemoryShape shape) {
      shape.on_cpu = std::string(kind) == "cpu";
      return EstimateMemory(decoder.spec(), shape);
    };
    const MemoryEstimate needed = estimate(asked);
    nlohmann::json instead = nlohmann::json::array();
    for (const Alternative& alternative : alternatives) {
      const std::int64_t bytes = estimate(alternative.shape).Total();
      if (bytes >= needed.Total()) continue;
      instead.push_back({{"change", alternative.change}, {"bytes", bytes}});
    }
    report[kind] = {
        {"bytes", needed.Total()}, {"parts", needed.ToString()}, {"instead", std::move(instead)}};
  }
  return report;
}

std::int64_t MemoryForThisProcess(const TrainSpec& spec) {
  if (spec.device != "cpu") return spec.device_memory_bytes;
  const std::int64_t available = AvailableMemoryBytes();
  const std::int64_t own = ResidentMemoryBytes();
  const std::int64_t free = available > 0 ? available + own : 0;
  if (spec.device_memory_bytes <= 0) return free;
  return free > 0 ? std::min(free, spec.device_memory_bytes) : spec.device_memory_bytes;
}

}  // namespace offshoot::trainer
