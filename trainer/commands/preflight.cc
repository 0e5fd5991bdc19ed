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
#include "trainer/memory_plan.h"
#include "trainer/prepared_job.h"
#include "trainer/train_spec.h"

namespace offshoot::trainer {
namespace {

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
  MemoryShape shape = ShapeWithoutBatch(spec, *job.decoder, *adapters);
  MeasureBatch(job.data.train.get(), options, shape);
  const nlohmann::json memory =
      MemoryReport(spec, *job.decoder, *adapters, job.data.train.get(), options);
  const nlohmann::json& needed = memory.at(spec.device == "cpu" ? "cpu" : "cuda");
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
      FormatBytes(needed.at("bytes").get<std::int64_t>()).c_str(),
      needed.at("parts").get<std::string>().c_str());
  events.Emit("preflight", {{"rows", job.data.train->size()},
                            {"held_out_rows", job.data.held_out->size()},
                            {"tokens", job.data.counts.tokens},
                            {"trained_tokens", job.data.counts.trained_tokens},
                            {"truncated_rows", job.data.counts.truncated_rows},
                            {"dropped_rows", job.data.counts.dropped_rows},
                            {"total_steps", total_steps},
                            {"trainable_parameters", adapters->parameter_count()},
                            {"target_modules", adapters->target_module_names()},
                            {"memory_bytes", needed.at("bytes")},
                            {"memory", memory},
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
