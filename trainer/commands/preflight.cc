// preflight: reads the base's config and the data, holds no device and no weights, and says what
// the job would be, or why it cannot be.

#include <algorithm>
#include <cstdio>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/job_session.h"
#include "trainer/data/batch_plan.h"
#include "trainer/error.h"
#include "trainer/lora/lora_set.h"
#include "trainer/memory_estimate.h"
#include "trainer/prepared_job.h"
#include "trainer/train_spec.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kMaxStepsLookedAt = 2000;

// The largest micro-batch of the first steps: which rows meet depends on the shuffle.
void FindLargestMicroBatch(const Dataset& data, const BatchOptions& options, BatchPlanner& planner,
                           MemoryShape& shape) {
  const std::int64_t steps = std::min(planner.StepsInEpoch(0), kMaxStepsLookedAt);
  for (std::int64_t step = 0; step < steps; ++step) {
    for (const MicroBatch& rows : RankShare(planner.Step({0, step}), options, 0)) {
      std::int64_t tokens = 0;
      for (const std::int64_t row : rows) {
        const auto length = static_cast<std::int64_t>(data.ids(row).size());
        tokens += length;
        shape.longest_row = std::max(shape.longest_row, length);
      }
      shape.tokens = std::max(shape.tokens, tokens);
    }
  }
}

int Preflight(const TrainSpec& spec, const std::string& work_directory, EventWriter& events) {
  const PreparedJob job = PrepareJob(spec, work_directory.empty() ? "" : work_directory + "/cache",
                                     /*load_weights=*/false, events);
  const std::unique_ptr<LoraSet> adapters =
      spec.init_adapter.empty() ? LoraSet::Create(*job.decoder, spec.lora, spec.seed)
                                : LoraSet::Load(*job.decoder, spec.init_adapter);
  const std::int64_t ranks =
      spec.resolved.contains("resources") && spec.resolved["resources"].is_object()
          ? spec.resolved["resources"].value("ranks", std::int64_t{1})
          : 1;
  const BatchOptions options =
      BatchOptionsFromSpec(spec.resolved, std::max<std::int64_t>(1, ranks));
  BatchPlanner planner(*job.data.train, options);
  MemoryShape shape = {.weight_bytes = job.decoder->weight_bytes(),
                       .adapter_parameters = adapters->parameter_count(),
                       .bytes_per_element = static_cast<std::int64_t>(c10::elementSize(spec.dtype)),
                       .recompute_activations = spec.gradient_checkpointing,
                       .on_cpu = spec.device == "cpu"};
  FindLargestMicroBatch(*job.data.train, options, planner, shape);
  const MemoryEstimate memory = EstimateMemory(job.decoder->spec(), shape);
  std::vector<std::string> warnings = job.data.warnings;
  const std::int64_t context = job.decoder->spec().context_length;
  if (context > 0 && shape.longest_row > context) {
    warnings.push_back("the longest row has " + std::to_string(shape.longest_row) +
                       " tokens and the base was made for " + std::to_string(context) +
                       "; lower sequence_len.");
  }
  const std::int64_t total_steps =
      planner.TotalSteps(spec.num_train_epochs, std::max<std::int64_t>(0, spec.max_steps));
  std::fprintf(
      stderr, "%lld rows to train on, %lld held out, %lld steps, about %s of memory (%s)\n",
      static_cast<long long>(job.data.train->size()),
      static_cast<long long>(job.data.held_out->size()), static_cast<long long>(total_steps),
      FormatBytes(memory.Total()).c_str(), memory.ToString().c_str());
  events.Emit("preflight", {{"rows", job.data.train->size()},
                            {"held_out_rows", job.data.held_out->size()},
                            {"tokens", job.data.counts.tokens},
                            {"trained_tokens", job.data.counts.trained_tokens},
                            {"truncated_rows", job.data.counts.truncated_rows},
                            {"dropped_rows", job.data.counts.dropped_rows},
                            {"total_steps", total_steps},
                            {"trainable_parameters", adapters->parameter_count()},
                            {"target_modules", adapters->target_module_names()},
                            {"memory_bytes", memory.Total()},
                            {"warnings", warnings}});
  return kExitDone;
}

}  // namespace

int RunPreflight(const std::vector<std::string>& words) {
  Arguments arguments(
      "preflight", "checks base model and data without training",
      WithSessionArguments({{"spec", "FILE", "the job's spec (JSON)", true},
                            {"work-dir", "DIR", "keeps tokenised data in DIR/cache"}}));
  if (!arguments.Parse(words)) {
    return kExitDone;
  }
  return RunJobSession(arguments, [&](EventWriter& events, RunControl&) {
    const TrainSpec spec = ReadTrainSpec(arguments.Text("spec"));
    SetThreads(spec.threads);
    return Preflight(spec, arguments.Text("work-dir"), events);
  });
}

}  // namespace offshoot::trainer
