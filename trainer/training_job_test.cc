#include "trainer/training_job.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "trainer/prepared_job.h"
#include "trainer/tiny_job.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct Finished {
  TrainOutcome outcome;
  at::Tensor adapter;    // all of it, flat
  at::Tensor gradients;  // of the last step
  std::vector<nlohmann::json> metrics;
  double eval_loss = 0;
  double base_eval_loss = 0;
};

std::vector<nlohmann::json> ReadMetrics(const std::string& path) {
  std::vector<nlohmann::json> lines;
  const std::string text = ReadWholeFile(path);
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    lines.push_back(nlohmann::json::parse(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return lines;
}

// Without the time it took, which no two runs share.
nlohmann::json Timeless(std::vector<nlohmann::json> lines) {
  for (nlohmann::json& line : lines) {
    line.erase("step_seconds");
    line.erase("tokens_per_second");
  }
  return lines;
}

Finished RunJob(const TinyJob& tiny, const nlohmann::json& document, const std::string& work,
                RunControl& control) {
  const TrainSpec spec = ParseTrainSpec(document);
  fs::create_directories(tiny.File(work) + "/checkpoints");
  EventWriter events(-1);
  SetThreads(spec.threads);
  const PreparedJob prepared = PrepareJob(spec, "", /*load_weights=*/true, events);
  const auto collective = MakeCollective({}, "cpu", nullptr);
  const JobParts parts = {spec,    *prepared.decoder, prepared.data,  events,
                          control, *collective,       tiny.File(work)};
  TrainingJob job(parts);
  Finished finished;
  finished.outcome = job.Train();
  std::vector<at::Tensor> all;
  std::int64_t count = 0;
  for (const LoraSet::Parameter& parameter : job.adapters().parameters()) {
    count += parameter.tensor.numel();
  }
  // The tensors lie back to back.
  finished.adapter =
      job.adapters().parameters().front().tensor.detach().as_strided({count}, {1}).clone();
  finished.gradients = job.gradients().clone();
  finished.metrics = ReadMetrics(job.metrics_path());
  if (prepared.data.held_out->size() > 0) {
    finished.eval_loss = job.EvaluateHeldOut(false).Mean();
    finished.base_eval_loss = job.EvaluateHeldOut(true).Mean();
  }
  return finished;
}

Finished RunJob(const TinyJob& tiny, const nlohmann::json& document, const std::string& work) {
  RunControl control(-1);
  return RunJob(tiny, document, work, control);
}

double LargestDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(TrainingJob, WholeRun_LearnsAndLogsEachStep) {
  const TinyJob tiny;
  nlohmann::json spec = tiny.Spec();
  spec["val_set_size"] = 4;
  spec["num_train_epochs"] = 12;
  const Finished run = RunJob(tiny, spec, "work");
  EXPECT_FALSE(run.outcome.stopped);
  EXPECT_EQ(run.outcome.first_step, 1);
  EXPECT_EQ(run.outcome.last_step, 60);  // 20 rows, 4 a step, 12 epochs
  ASSERT_EQ(run.metrics.size(), 60U);
  EXPECT_LT(run.metrics.back().at("train_loss").get<double>(),
            0.6 * run.metrics.front().at("train_loss").get<double>());
  EXPECT_LT(run.eval_loss, 0.8 * run.base_eval_loss);
  EXPECT_EQ(run.metrics[0].at("step"), 1);
  EXPECT_GT(run.metrics[0].at("grad_norm").get<double>(), 0);
  EXPECT_EQ(run.metrics.back().at("epoch").get<double>(), 12.0);
}

TEST(TrainingJob, RunTwice_GivesTheSameBits) {
  const TinyJob tiny;
  nlohmann::json spec = tiny.Spec();
  spec["lora_dropout"] = 0.1;
  const Finished first = RunJob(tiny, spec, "first");
  const Finished second = RunJob(tiny, spec, "second");
  EXPECT_TRUE(at::equal(first.adapter, second.adapter));
  EXPECT_EQ(Timeless(first.metrics), Timeless(second.metrics));
  spec["seed"] = 43;
  EXPECT_FALSE(at::equal(first.adapter, RunJob(tiny, spec, "other").adapter));
}

TEST(TrainingJob, ResumedFromEachCheckpoint_EqualsTheUninterruptedRun) {
  const TinyJob tiny;
  nlohmann::json spec = tiny.Spec();
  spec.update({{"lora_dropout", 0.1},
               {"warmup_ratio", 0.2},
               {"save_total_limit", 0},
               {"save_steps", 1},
               {"val_set_size", 4},
               {"eval_steps", 4}});
  const Finished whole = RunJob(tiny, spec, "whole");
  ASSERT_EQ(whole.outcome.last_step, 10);
  for (std::int64_t step = 1; step <= 10; ++step) {
    char name[32];
    std::snprintf(name, sizeof(name), "step-%08lld", static_cast<long long>(step));
    spec["resume_from"] = tiny.File("whole/checkpoints/") + name;
    const Finished resumed = RunJob(tiny, spec, "resumed-" + std::to_string(step));
    EXPECT_EQ(resumed.outcome.first_step, step + 1);
    EXPECT_TRUE(at::equal(resumed.adapter, whole.adapter)) << "resumed after step " << step;
    EXPECT_EQ(Timeless(resumed.metrics), Timeless(whole.metrics)) << "resumed after step " << step;
  }
}

TEST(TrainingJob, MicroBatchesOfAnySize_GiveTheSameGradient) {
  const TinyJob tiny;
  nlohmann::json spec = tiny.Spec();
  spec["per_device_train_batch_size"] = 6;
  spec["gradient_accumulation_steps"] = 1;
  spec["max_steps"] = 1;
  const at::Tensor whole = RunJob(tiny, spec, "whole").gradients;
  spec["max_steps"] = 4;
  const Finished whole_run = RunJob(tiny, spec, "whole-run");
  for (const int size : {1, 2, 3}) {
    const std::string name = std::to_string(size);
    spec["per_device_train_batch_size"] = size;
    spec["gradient_accumulation_steps"] = 6 / size;
    spec["max_steps"] = 1;
    const at::Tensor parts = RunJob(tiny, spec, "parts-" + name).gradients;
    EXPECT_LT(((parts - whole).norm() / whole.norm()).item<double>(), 1e-6) << size << " rows";
    spec["max_steps"] = 4;
    const Finished run = RunJob(tiny, spec, "parts-run-" + name);
    for (std::size_t step = 0; step < 4; ++step) {
      const double loss = whole_run.metrics[step].at("train_loss");
      EXPECT_NEAR(run.metrics[step].at("train_loss").get<double>(), loss, 1e-6 * loss)
          << size << " rows, step " << step + 1;
    }
  }
}

TEST(TrainingJob, RecomputedActivations_ChangeNothing) {
  const TinyJob tiny;
  nlohmann::json spec = tiny.Spec();
  spec["lora_dropout"] = 0.1;
  const Finished kept = RunJob(tiny, spec, "kept");
  spec["gradient_checkpointing"] = true;
  for (const char* granularity : {"full", "selective"}) {
    SCOPED_TRACE(granularity);
    spec["recompute_granularity"] = granularity;
    const Finished recomputed = RunJob(tiny, spec, granularity);
    // Gradients may be added in another order, and Adam makes the most of the smallest of them; a
    // dropout mask that was not drawn again would show in the first digits.
    EXPECT_LT(LargestDifference(kept.adapter, recomputed.adapter), 1e-3);
    ASSERT_EQ(kept.metrics.size(), recomputed.metrics.size());
    for (std::size_t i = 0; i < kept.metrics.size(); ++i) {
      for (const char* key : {"train_loss", "grad_norm"}) {
        EXPECT_NEAR(kept.metrics[i].at(key).get<double>(),
                    recomputed.metrics[i].at(key).get<double>(), 1e-4)
            << key << " of step " << i + 1;
      }
    }
  }
}

TEST(TrainingJob, StopRequested_LeavesACheckpointToGoOnFrom) {
  const TinyJob tiny;
  nlohmann::json spec = tiny.Spec();
  spec["save_steps"] = 0;
  const Finished whole = RunJob(tiny, spec, "whole");
  spec["max_steps"] = 0;
  RunControl stop_at_once(-1);
  stop_at_once.RequestStop(StopRequest::kStop);
  const Finished nothing = RunJob(tiny, spec, "nothing", stop_at_once);
  EXPECT_TRUE(nothing.outcome.stopped);
  EXPECT_EQ(nothing.outcome.last_step, 0);
  EXPECT_EQ(nothing.outcome.stopped_checkpoint, "");

  spec["save_steps"] = 5;
  spec["save_total_limit"] = 0;
  RunJob(tiny, spec, "half");
  spec["resume_from"] = tiny.File("half/checkpoints/step-00000005");
  RunControl stop_again(-1);
  stop_again.RequestStop(StopRequest::kStop);
  const Finished stopped = RunJob(tiny, spec, "stopped", stop_again);
  EXPECT_TRUE(stopped.outcome.stopped);
  ASSERT_EQ(stopped.outcome.stopped_checkpoint, tiny.File("stopped/checkpoints/step-00000005"));
  spec["resume_from"] = stopped.outcome.stopped_checkpoint;
  EXPECT_TRUE(at::equal(RunJob(tiny, spec, "resumed").adapter, whole.adapter));
}

TEST(TrainingJob, LossThatIsNoNumber_NamesStepAndRows) {
  const TinyJob tiny;
  nlohmann::json spec = tiny.Spec();
  spec["learning_rate"] = 100;
  spec["max_grad_norm"] = 0;
  spec["weight_decay"] = 100;  // each step multiplies the weights by -9999
  spec["num_train_epochs"] = 50;
  try {
    RunJob(tiny, spec, "work");
    FAIL() << "trained";
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, Reason::kNanLoss) << error.what();
    EXPECT_GT(error.step, 1);
    EXPECT_FALSE(error.rows.empty());
    EXPECT_THAT(error.what(), AllOf(HasSubstr("rows.jsonl line"), HasSubstr("learning_rate")));
  }
}

TEST(TrainingJob, CheckpointOfAnotherJob_IsRefused) {
  const TinyJob tiny;
  nlohmann::json spec = tiny.Spec();
  spec["save_total_limit"] = 0;
  RunJob(tiny, spec, "first");
  spec["resume_from"] = tiny.File("first/checkpoints/step-00000006");
  nlohmann::json other = spec;
  other["lora_r"] = 2;
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [&] { RunJob(tiny, other, "other"); }),
              HasSubstr("lora_r 2 instead of 4"));
  other = spec;
  other["threads"] = 2;
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [&] { RunJob(tiny, other, "other"); }),
              HasSubstr("threads 2 instead of 1"));
  other["reproducible"] = false;
  RunJob(tiny, other, "other");
}

}  // namespace
}  // namespace offshoot::trainer
