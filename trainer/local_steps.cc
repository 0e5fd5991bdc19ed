// Local steps: the part of TrainingJob in which the ranks take several steps by themselves before
// they agree on one state (sync.local_steps).

#include <algorithm>
#include <chrono>
#include <cmath>

#include "trainer/training_job.h"

namespace offshoot::trainer {

// Rounds end at multiples of local_steps, and with the last step. A rank without a trained token in
// a step leaves its state as it is.
TrainingJob::StepResult TrainingJob::RunRound() {
  using Seconds = std::chrono::duration<double>;
  const auto begin = std::chrono::steady_clock::now();
  const TrainSpec& spec = parts_.spec;
  const std::int64_t end =
      std::min(total_steps_, (state_.step / spec.local_steps + 1) * spec.local_steps);
  const auto steps = static_cast<double>(end - state_.step);
  std::int64_t own_tokens = 0, all_tokens = 0;
  StepResult result;
  RankRow row;
  outer_->BeginRound();
  while (state_.step < end) {
    const StepPlan plan = planner_->Step(state_.cursor);
    const std::vector<MicroBatch> mine =
        RankShare(plan, batch_options_, parts_.collective.rank(), speeds_);
    std::int64_t trained_tokens = 0;
    for (const MicroBatch& rows : mine) {
      for (const std::int64_t index : rows) {
        trained_tokens += parts_.data.train->trained_tokens(index);
      }
    }
    const double loss_before = row.loss_sum;
    result.abandoned = !Compute(mine, trained_tokens, row);
    if (result.abandoned) {
      return result;
    }
    result.learning_rate = spec.learning_rate * LearningRateFactor(schedule_, state_.step + 1);
    if (trained_tokens > 0) {
      const double loss = (row.loss_sum - loss_before) / static_cast<double>(trained_tokens);
      result.gradient_norm = optimizer_->GradientNorm();
      if (!std::isfinite(loss) || !std::isfinite(result.gradient_norm)) {
        FailWithNan(mine, loss, result.gradient_norm);
      }
      optimizer_->Step(state_.step + 1, result.learning_rate,
                       ClippingCoefficient(result.gradient_norm, spec.max_grad_norm));
    }
    own_tokens += trained_tokens;
    all_tokens += plan.trained_tokens;
    Advance(plan, result);
  }
  // What rows are dealt out by is of one step.
  row.fixed_seconds =
      (seconds_after_exchange_ + Seconds(std::chrono::steady_clock::now() - begin).count() -
       row.compute_seconds) /
      steps;
  row.tokens /= steps;
  row.compute_seconds /= steps;
  const auto all = static_cast<double>(std::max<std::int64_t>(1, all_tokens));
  result.loss =
      Exchange(row, outer_->Contribution(static_cast<double>(own_tokens) / all), result) / all;
  outer_->Apply();
  return result;
}

}  // namespace offshoot::trainer
