// One job's training: adapter, optimizer, data cursor, schedule and metrics belong to this object
// and to nothing else, so a process could hold several over one frozen base.
//
//   micro-batch ─ forward ─ sum of token losses ─ backward(1 / trained tokens of the whole step)
//        └ × accumulation ┘ ─ all-reduce ─ norm, clip ─ AdamW ─ log ─ evaluate? ─ checkpoint?
//
// The loss of a step is the sum over all micro-batches and ranks divided by the trained tokens of
// all of them, so its gradient is the one a single rank with one large batch would have, whatever
// part of the step each rank takes. Unless the job is to be reproducible, the parts follow the
// ranks' measured speed. One all-reduce a step: gradients, and behind them what the ranks tell each
// other (rank_table.h).
//
// With sync.local_steps (local_steps.cc) each rank takes its part of so many steps by itself, with
// the mean loss of its own trained tokens, and then the ranks agree on one state
// (optim/outer_step.h): one all-reduce a round. Requests are heard, and checkpoints written,
// between rounds. Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/activity.h"
#include "trainer/checkpoint.h"
#include "trainer/data/batch_plan.h"
#include "trainer/data/dataset.h"
#include "trainer/evaluation.h"
#include "trainer/events.h"
#include "trainer/lora/lora_set.h"
#include "trainer/metrics_log.h"
#include "trainer/models/decoder.h"
#include "trainer/optim/adamw.h"
#include "trainer/optim/outer_step.h"
#include "trainer/optim/schedule.h"
#include "trainer/parallel/collective.h"
#include "trainer/rank_table.h"
#include "trainer/speed_estimate.h"
#include "trainer/train_spec.h"

namespace offshoot::trainer {

// Borrowed; all outlive the job.
struct JobParts {
  const TrainSpec& spec;
  const Decoder& decoder;
  const DataSplit& data;
  EventWriter& events;
  RunControl& control;
  Collective& collective;
  std::string work_directory;
  // What the first steps are dealt out by, one per rank; empty: all alike.
  std::vector<RankSpeed> first_speeds = {};
};

struct TrainOutcome {
  bool stopped = false;            // by request, before the last step
  std::string stopped_checkpoint;  // empty: none was written
  std::int64_t first_step = 0;     // of this attempt
  std::int64_t last_step = 0;      // done
};

class TrainingJob {
 public:
  // Makes the adapter (new, or init_adapter), or restores the checkpoint of resume_from. Throws
  // Error for a target that matches nothing, a checkpoint that does not fit, a full disk.
  explicit TrainingJob(const JobParts& parts);

  // The steps that are left. Throws Error: kNanLoss with step and rows, kOutOfMemory with what was
  // asked and what would fit, kDiskFull, kRankLost.
  TrainOutcome Train();

  // Mean loss on the held-out rows; collective. base: with the adapter switched off.
  LossSum EvaluateHeldOut(bool base);

  // A checkpoint of the steps done, now; its path on rank 0 (an existing one of this step is kept).
  std::string SaveCheckpoint();

  LoraSet& adapters() { return *adapters_; }
  const std::string& metrics_path() const { return metrics_->path(); }
  const nlohmann::json& environment() const { return state_.environment; }
  std::int64_t total_steps() const { return total_steps_; }
  std::int64_t steps_done() const { return state_.step; }
  // Of the last step, over all ranks, before clipping; in parameter order.
  const at::Tensor& gradients() const { return optimizer_->gradients(); }

 private:
  struct StepResult {
    double loss = 0;           // mean over the step's (the round's) trained tokens
    double gradient_norm = 0;  // of a round: this rank's, in its last step
    double learning_rate = 0;
    std::int64_t tokens = 0;     // processed by all ranks
    bool abandoned = false;      // a stop came in its midst: of a step nothing has changed, of a
                                 // round nothing is to be kept
    std::vector<RankRow> ranks;  // empty with one rank
  };
  struct Requests {
    StopRequest stop = StopRequest::kNone;
    bool checkpoint = false;
  };

  void Restore(const std::string& checkpoint_path);
  StepResult RunStep(const StepPlan& plan);
  StepResult RunRound();
  // Forward and backward of these, adding to row. False: a stop came in their midst.
  bool Compute(const std::vector<MicroBatch>& mine, std::int64_t trained_tokens, RankRow& row);
  void Advance(const StepPlan& plan, StepResult& result);
  // Returns the loss summed over the rows' trained tokens.
  at::Tensor RunMicroBatch(const MicroBatch& rows, std::int64_t index, std::int64_t trained_tokens);
  void Begin(std::string what, Activity::Kind kind = Activity::Kind::kWorking);
  void Log(const StepResult& result, double seconds);
  void MaybeEvaluate();
  void MaybeCheckpoint(bool requested);
  [[noreturn]] void FailWithNan(const std::vector<MicroBatch>& micro_batches, double loss,
                                double norm);
  [[noreturn]] void FailWithOutOfMemory(const MicroBatch& rows, const std::string& what) const;

  // What any rank was asked for, as of the last step: the same answer on all of them.
  Requests TakeRequests();
  // The all-reduce of a bucket that ends with the ranks' table; fills ranks; total loss.
  double Exchange(RankRow mine, at::Tensor& bucket, StepResult& result);
  // Whether a multiple of this many steps was reached in the last step or round.
  bool Reached(std::int64_t every) const;
  [[noreturn]] void FailWithBadNumbers(const StepPlan& plan, const std::vector<MicroBatch>& mine,
                                       const StepResult& result, double own_loss);

  const JobParts parts_;
  const BatchOptions batch_options_;
  std::unique_ptr<LoraSet> adapters_;
  std::unique_ptr<FlatAdamW> optimizer_;
  std::unique_ptr<OuterStep> outer_;  // with local steps
  std::unique_ptr<BatchPlanner> planner_;
  std::unique_ptr<MetricsLog> metrics_;  // rank 0 only
  ScheduleOptions schedule_;
  std::int64_t total_steps_ = 0;
  std::int64_t round_begin_ = 0;       // steps done before the last step or round
  std::int64_t last_checkpoint_ = -1;  // step of the last one written or resumed from
  std::int64_t unconfirmed_ = -1;      // step of the last one written by this process (rank 0)
  CheckpointState state_;

  std::unique_ptr<Activity> activity_;  // while Train runs
  using Time = std::chrono::steady_clock::time_point;
  Time last_exchange_;                  // when the last all-reduce ended
  double seconds_after_exchange_ = 0;   // of the last step: update and log
  Requests requests_;                   // with several ranks: agreed on in the last step
  SpeedEstimate speed_estimate_;        // rank 0
  std::vector<RankSpeed> next_speeds_;  // rank 0: what it will say in the next exchange
  std::vector<RankSpeed> speeds_;       // of the next step, the same on all ranks
};

}  // namespace offshoot::trainer
