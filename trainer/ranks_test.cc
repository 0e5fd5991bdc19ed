// Several ranks train as one would: unequal shares, ranks without work, stops; and how the shares
// follow measured speed. The ranks here are threads that meet at a barrier.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <barrier>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <thread>

#include "trainer/error.h"
#include "trainer/parallel/courier.h"
#include "trainer/prepared_job.h"
#include "trainer/rank_table.h"
#include "trainer/speed_estimate.h"
#include "trainer/tiny_job.h"
#include "trainer/training_job.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Sums in the order of the ranks. A rank that ends early leaves the barrier.
class Meeting {
 public:
  explicit Meeting(int ranks) : tensors_(static_cast<std::size_t>(ranks)), barrier_(ranks) {}

  void Sum(std::int64_t rank, at::Tensor& tensor) {
    tensors_[static_cast<std::size_t>(rank)] = tensor;
    barrier_.arrive_and_wait();
    at::Tensor sum = at::zeros_like(tensor);
    for (const at::Tensor& part : tensors_) sum.add_(part);
    barrier_.arrive_and_wait();
    tensor.copy_(sum);
    barrier_.arrive_and_wait();
  }
  std::int64_t ranks() const { return static_cast<std::int64_t>(tensors_.size()); }

 private:
  std::vector<at::Tensor> tensors_;
  std::barrier<> barrier_;
};

class ThreadRank : public Collective {
 public:
  ThreadRank(Meeting& meeting, std::int64_t rank) : meeting_(meeting), rank_(rank) {}
  std::int64_t rank() const override { return rank_; }
  std::int64_t world_size() const override { return meeting_.ranks(); }
  void AllReduceSum(at::Tensor& tensor) override { meeting_.Sum(rank_, tensor); }
  void Broadcast(at::Tensor& tensor) override {
    if (rank_ != 0) tensor.zero_();
    meeting_.Sum(rank_, tensor);
  }
  void Barrier() override {
    at::Tensor nothing = at::zeros({1}, at::kFloat);
    meeting_.Sum(rank_, nothing);
  }

 private:
  Meeting& meeting_;
  const std::int64_t rank_;
};

struct FinishedRank {
  TrainOutcome outcome;
  at::Tensor adapter;
  at::Tensor gradients;
  double held_out_loss = 0;  // 0: no row is held out
  std::vector<double> losses;
  std::vector<nlohmann::json> metrics;
};

at::Tensor FlatAdapter(TrainingJob& job) {
  std::int64_t count = 0;
  for (const LoraSet::Parameter& parameter : job.adapters().parameters()) {
    count += parameter.tensor.numel();
  }
  return job.adapters().parameters().front().tensor.detach().as_strided({count}, {1}).clone();
}

using MakeRank = std::function<std::unique_ptr<Collective>(int rank)>;

// One result per rank; speeds deal out the steps. stop_rank: its stop is requested at once.
// make_rank: other than a ThreadRank.
std::vector<FinishedRank> RunRanks(const TinyJob& tiny, nlohmann::json document, int ranks,
                                   const std::vector<RankSpeed>& speeds, const std::string& work,
                                   int stop_rank = -1, const MakeRank& make_rank = {}) {
  const TrainSpec spec = ParseTrainSpec(document);
  std::vector<FinishedRank> finished(static_cast<std::size_t>(ranks));
  Meeting meeting(ranks);
  std::vector<std::thread> threads;
  fs::create_directories(tiny.File(work) + "/checkpoints");
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      SetThreads(1);
      EventWriter events(-1);
      RunControl control(-1);
      if (rank == stop_rank) control.RequestStop(StopRequest::kStop);
      const PreparedJob prepared = PrepareJob(spec, "", /*load_weights=*/true, events);
      const std::unique_ptr<Collective> collective =
          make_rank ? make_rank(rank) : std::make_unique<ThreadRank>(meeting, rank);
      JobParts parts = {spec,    *prepared.decoder, prepared.data,  events,
                        control, *collective,       tiny.File(work)};
      parts.first_speeds = speeds;
      TrainingJob job(parts);
      FinishedRank& mine = finished[static_cast<std::size_t>(rank)];
      mine.outcome = job.Train();
      mine.adapter = FlatAdapter(job);
      mine.gradients = job.gradients().clone();
      mine.held_out_loss = job.EvaluateHeldOut(/*base=*/false).Mean();
      if (rank == 0) {
        std::ifstream lines(job.metrics_path());
        for (std::string line; std::getline(lines, line);) {
          mine.metrics.push_back(nlohmann::json::parse(line));
          mine.losses.push_back(mine.metrics.back().at("train_loss"));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return finished;
}

double RelativeDifference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

nlohmann::json TenSteps(const TinyJob& tiny) {
  nlohmann::json spec = tiny.Spec();
  spec.update({{"resources", {{"ranks", 1}}},
               {"per_device_train_batch_size", 2},
               {"gradient_accumulation_steps", 6},
               {"max_steps", 10}});
  return spec;
}

void ExpectTrainsAsOne(int ranks, const std::vector<RankSpeed>& speeds) {
  const TinyJob tiny;
  nlohmann::json spec = TenSteps(tiny);
  const FinishedRank one = RunRanks(tiny, spec, 1, {}, "one").front();
  const std::vector<FinishedRank> all = RunRanks(tiny, spec, ranks, speeds, "all");
  ASSERT_EQ(one.losses.size(), 10u);
  ASSERT_EQ(all[0].losses.size(), 10u);
  for (std::size_t step = 0; step < 10; ++step) {
    EXPECT_NEAR(all[0].losses[step], one.losses[step], 1e-5 * one.losses[step]) << "step " << step;
  }
  EXPECT_LT(RelativeDifference(all[0].adapter, one.adapter), 1e-3);
  for (const FinishedRank& rank : all) {
    EXPECT_TRUE(rank.adapter.equal(all[0].adapter)) << "the ranks drifted apart";
  }
  spec["max_steps"] = 1;
  const FinishedRank first = RunRanks(tiny, spec, 1, {}, "one-step").front();
  const std::vector<FinishedRank> firsts = RunRanks(tiny, spec, ranks, speeds, "all-step");
  EXPECT_LT(RelativeDifference(firsts[0].gradients, first.gradients), 1e-5);
}

TEST(Ranks, SharesOneToThree_TrainAsOne) { ExpectTrainsAsOne(2, {{.speed = 1}, {.speed = 3}}); }

TEST(Ranks, FourUnequal_TrainAsOne) {
  ExpectTrainsAsOne(4, {{.speed = 5}, {.speed = 1}, {.speed = 2}, {.speed = 4}});
}

TEST(Ranks, OneWithoutAnyToken_TrainAsOne) {
  ExpectTrainsAsOne(3, {{.speed = 1000}, {.speed = 1}, {.speed = 1000}});
}

TEST(Ranks, NotReproducible_SharesFollowTheSpeedAndAreLogged) {
  const TinyJob tiny;
  nlohmann::json spec = TenSteps(tiny);
  spec["reproducible"] = false;
  const std::vector<FinishedRank> all =
      RunRanks(tiny, spec, 2, {{.speed = 1}, {.speed = 9}}, "work");
  const FinishedRank one = RunRanks(tiny, spec, 1, {}, "one").front();
  ASSERT_EQ(all[0].metrics.size(), 10u);
  for (std::size_t step = 0; step < 10; ++step) {
    const nlohmann::json& ranks = all[0].metrics[step].at("ranks");
    ASSERT_EQ(ranks.size(), 2u);
    EXPECT_NEAR(ranks[0].at("share").get<double>() + ranks[1].at("share").get<double>(), 1, 1e-6);
    EXPECT_GE(ranks[1].at("wait_seconds").get<double>(), 0);
    EXPECT_NEAR(all[0].losses[step], one.losses[step], 1e-4 * one.losses[step]);
  }
  // The threads are equally fast, whatever they were first taken for.
  EXPECT_LT(all[0].metrics[0]["ranks"][0]["share"].get<double>(), 0.2);
  EXPECT_GT(all[0].metrics[9]["ranks"][0]["share"].get<double>(), 0.2);
  EXPECT_FALSE(one.metrics[0].contains("ranks"));
}

TEST(Ranks, OneIsAskedToStop_AllStopAfterTheSameStepWithACheckpoint) {
  const TinyJob tiny;
  const std::vector<FinishedRank> all = RunRanks(tiny, TenSteps(tiny), 3, {}, "work", 2);
  for (const FinishedRank& rank : all) {
    EXPECT_TRUE(rank.outcome.stopped);
    EXPECT_EQ(rank.outcome.last_step, 1);
  }
  EXPECT_TRUE(fs::exists(all[0].outcome.stopped_checkpoint + "/manifest.json"));
}

TEST(Ranks, AnotherNumberOfRanks_GoesOnFromTheCheckpoint) {
  const TinyJob tiny;
  nlohmann::json spec = TenSteps(tiny);
  spec.update({{"reproducible", false}, {"save_steps", 4}, {"save_total_limit", 0}});
  const FinishedRank whole = RunRanks(tiny, spec, 1, {}, "one").front();
  RunRanks(tiny, spec, 3, {}, "three");
  spec["resume_from"] = tiny.File("three/checkpoints/step-00000004");
  const FinishedRank resumed = RunRanks(tiny, spec, 2, {}, "two").front();
  EXPECT_EQ(resumed.outcome.first_step, 5);
  EXPECT_LT(RelativeDifference(resumed.adapter, whole.adapter), 1e-3);
}

nlohmann::json LocalSteps(const TinyJob& tiny, int local_steps) {
  nlohmann::json spec = TenSteps(tiny);
  spec["sync"] = {{"local_steps", local_steps}};
  return spec;
}

// After a round all ranks hold one adapter, whatever parts of the rows they had.
TEST(LocalSteps, UnequalRanks_AgreeAfterEachRound) {
  const TinyJob tiny;
  const std::vector<FinishedRank> all =
      RunRanks(tiny, LocalSteps(tiny, 4), 3, {{.speed = 3}, {.speed = 1}, {.speed = 2}}, "all");
  for (const FinishedRank& rank : all) {
    EXPECT_TRUE(rank.adapter.equal(all[0].adapter)) << "the ranks drifted apart";
    EXPECT_EQ(rank.outcome.last_step, 10);
  }
  ASSERT_EQ(all[0].metrics.size(), 3u);  // rounds of 4, 4 and 2 steps
  EXPECT_EQ(all[0].metrics[1].at("step"), 8);
  EXPECT_EQ(all[0].metrics[2].at("step"), 10);
  EXPECT_EQ(all[0].metrics[2].at("ranks").size(), 3u);
}

// Ranks that do not reach each other: what they exchange is carried as files.
TEST(LocalSteps, ExchangedAsFiles_GiveTheSameBits) {
  const TinyJob tiny;
  const nlohmann::json spec = LocalSteps(tiny, 4);
  const std::vector<RankSpeed> speeds = {{.speed = 3}, {.speed = 1}, {.speed = 2}};
  const std::vector<FinishedRank> met = RunRanks(tiny, spec, 3, speeds, "met");
  Courier courier;
  const std::vector<FinishedRank> carried =
      RunRanks(tiny, spec, 3, speeds, "carried", -1, [&](int rank) {
        return MakeFileExchange({.rank = rank, .world_size = 3},
                                tiny.File("exchange-" + std::to_string(rank)),
                                courier.LineOf(rank));
      });
  for (std::size_t rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(carried[rank].adapter.equal(met[0].adapter));
    EXPECT_EQ(carried[rank].held_out_loss, met[0].held_out_loss);
  }
  EXPECT_EQ(carried[0].losses, met[0].losses);
}

TEST(LocalSteps, RankWithoutAnyToken_ChangesNothing) {
  const TinyJob tiny;
  const nlohmann::json spec = LocalSteps(tiny, 5);
  const FinishedRank one = RunRanks(tiny, spec, 1, {}, "one").front();
  const std::vector<FinishedRank> all =
      RunRanks(tiny, spec, 2, {{.speed = 1000000}, {.speed = 1}}, "all");
  EXPECT_LT(RelativeDifference(all[0].adapter, one.adapter), 1e-6);
  EXPECT_TRUE(all[1].adapter.equal(all[0].adapter));
}

TEST(LocalSteps, OuterStepThatOnlyAverages_OnOneRank_IsEveryStep) {
  const TinyJob tiny;
  nlohmann::json spec = LocalSteps(tiny, 5);
  spec["sync"].update({{"outer_learning_rate", 1}, {"outer_momentum", 0}});
  const FinishedRank local = RunRanks(tiny, spec, 1, {}, "local").front();
  const FinishedRank every = RunRanks(tiny, TenSteps(tiny), 1, {}, "every").front();
  EXPECT_LT(RelativeDifference(local.adapter, every.adapter), 1e-5);
}

// 16 epochs of 240 rows; measured: held out 1.398 every step, 1.428 with 5 local steps, 1.532 with
// 10; with the 0.7 and 0.9 of the DiLoCo paper's long pre-training 4.2 and 3.5.
TEST(LocalSteps, FourRanks_ConvergeAsEveryStepDoes) {
  const TinyJob tiny(300);
  nlohmann::json spec = tiny.Spec();
  spec.update({{"num_train_epochs", 16},
               {"val_set_size", 60},
               {"per_device_train_batch_size", 2},
               {"gradient_accumulation_steps", 4},
               {"resources", {{"ranks", 4}}}});
  const double every = RunRanks(tiny, spec, 4, {}, "every").front().held_out_loss;
  spec["sync"] = {{"local_steps", 5}};
  const double local = RunRanks(tiny, spec, 4, {}, "local").front().held_out_loss;
  EXPECT_LT(every, 1.6);  // 5.5 before
  EXPECT_LT(local, 1.1 * every);
}

TEST(LocalSteps, ResumedFromACheckpoint_EqualsARunWithoutIt) {
  const TinyJob tiny;
  nlohmann::json spec = LocalSteps(tiny, 3);
  spec.update({{"save_steps", 4}, {"save_total_limit", 0}});
  const FinishedRank whole = RunRanks(tiny, spec, 2, {}, "whole").front();
  // The first round's end after step 4 is step 6.
  EXPECT_FALSE(fs::exists(tiny.File("whole/checkpoints/step-00000004")));
  spec["resume_from"] = tiny.File("whole/checkpoints/step-00000006");
  const FinishedRank resumed = RunRanks(tiny, spec, 2, {}, "resumed").front();
  EXPECT_EQ(resumed.outcome.first_step, 7);
  EXPECT_TRUE(resumed.adapter.equal(whole.adapter));
}

TEST(LocalSteps, OneIsAskedToStop_AllStopAfterTheRoundWithACheckpoint) {
  const TinyJob tiny;
  const std::vector<FinishedRank> all = RunRanks(tiny, LocalSteps(tiny, 4), 2, {}, "work", 1);
  for (const FinishedRank& rank : all) {
    EXPECT_TRUE(rank.outcome.stopped);
    EXPECT_EQ(rank.outcome.last_step, 4);
  }
  EXPECT_TRUE(fs::exists(all[0].outcome.stopped_checkpoint + "/manifest.json"));
}

TEST(RankTable, Rows_SurviveTheSum) {
  const double loss = 12345.678901234;
  const at::Tensor first = at::zeros({RankTable::SizeFor(2)}, at::kFloat);
  const at::Tensor second = at::zeros_like(first);
  RankRow of_first;
  of_first.loss_sum = loss;
  of_first.stop = true;
  of_first.tokens = 100;
  of_first.busy_seconds = 2;
  RankTable::Write(first, 0, of_first, {{.speed = 7, .fixed = 3}, {.speed = 999'999, .fixed = 0}});
  RankRow of_second;
  of_second.loss_sum = std::numeric_limits<double>::quiet_NaN();
  of_second.checkpoint = true;
  of_second.tokens = 300;
  of_second.busy_seconds = 0.5;
  RankTable::Write(second, 1, of_second, {});
  const std::vector<RankRow> rows = RankTable::Read(first + second, 2);
  EXPECT_NEAR(rows[0].loss_sum, loss, 1e-9 * loss);
  EXPECT_TRUE(std::isnan(rows[1].loss_sum));
  EXPECT_TRUE(rows[0].stop);
  EXPECT_FALSE(rows[1].stop);
  EXPECT_TRUE(rows[1].checkpoint);
  EXPECT_EQ(rows[0].next_speed, (RankSpeed{.speed = 7, .fixed = 3}));
  EXPECT_EQ(rows[1].next_speed, (RankSpeed{.speed = 999'999, .fixed = 0}));
  EXPECT_THAT(SharesOf(rows), ::testing::ElementsAre(0.25, 0.75));
  EXPECT_THAT(WaitSeconds(rows), ::testing::ElementsAre(0, 1.5));
}

// A step of rows of 20 to 60 tokens on ranks of these speeds (tokens a second) and 50 ms besides.
std::vector<RankRow> OneStep(const std::vector<double>& speeds, const std::vector<RankSpeed>& dealt,
                             int rows) {
  StepPlan plan;
  plan.micro_batches.emplace_back();
  for (int row = 0; row < rows; ++row) {
    plan.micro_batches[0].push_back(row);
    plan.row_tokens.push_back(20 + (row * 7) % 41);
  }
  const BatchOptions options = {.rows_per_micro_batch = 8,
                                .world_size = static_cast<std::int64_t>(speeds.size())};
  std::vector<RankRow> result(speeds.size());
  for (std::size_t rank = 0; rank < speeds.size(); ++rank) {
    RankRow& row = result[rank];
    for (const MicroBatch& batch :
         RankShare(plan, options, static_cast<std::int64_t>(rank), dealt)) {
      for (const std::int64_t index : batch) {
        row.tokens += static_cast<double>(plan.row_tokens[static_cast<std::size_t>(index)]);
      }
    }
    row.compute_seconds = row.tokens / speeds[rank];
    row.fixed_seconds = 0.05;
    row.busy_seconds = row.compute_seconds + row.fixed_seconds;
  }
  return result;
}

double LargestWaitPart(const std::vector<RankRow>& rows) {
  double longest = 0;
  for (const RankRow& row : rows) longest = std::max(longest, row.busy_seconds);
  double wait = 0;
  for (const double seconds : WaitSeconds(rows)) wait = std::max(wait, seconds);
  return wait / longest;
}

TEST(SpeedEstimate, OneRankAtHalfSpeed_NoRankWaitsATenth) {
  SpeedEstimate estimate;
  std::vector<double> speeds = {400, 200};
  for (int step = 0; step < 20; ++step) {
    if (step == 10) speeds = {200, 400};  // the other one is held back
    const std::vector<RankRow> rows = OneStep(speeds, estimate.Speeds(), 32);
    const bool settled = (step > 0 && step < 10) || step > 15;
    EXPECT_LT(LargestWaitPart(rows), settled ? 0.1 : 1.0) << "step " << step;
    estimate.Add(rows);
  }
}

TEST(SpeedEstimate, RankThatGotNothing_IsTriedAgain) {
  SpeedEstimate estimate;
  std::vector<double> speeds = {1000, 1};
  bool starved = false;
  for (int step = 0; step < 100; ++step) {
    if (step == 10) speeds = {1000, 1000};
    const std::vector<RankRow> rows = OneStep(speeds, estimate.Speeds(), 8);
    starved = starved || rows[1].tokens == 0;
    estimate.Add(rows);
  }
  EXPECT_TRUE(starved);
  EXPECT_NEAR(SharesOf(OneStep(speeds, estimate.Speeds(), 8))[1], 0.5, 0.15);
}

}  // namespace
}  // namespace offshoot::trainer
