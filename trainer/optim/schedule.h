// The learning rate of each optimizer step, as a factor of the job's learning_rate. Pure,
// thread-safe. The formulas are those of transformers' get_scheduler, so a job file that was tuned
// there behaves the same here (https://github.com/huggingface/transformers,
// src/transformers/optimization.py).
#pragma once

#include <cstdint>
#include <string>

namespace offshoot::trainer {

enum class ScheduleKind { kConstant, kLinear, kCosine };

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::kCosine;
  std::int64_t warmup_steps = 0;
  double warmup_ratio = 0.0;  // of the total steps, rounded up; used when warmup_steps is 0
  std::int64_t total_steps = 1;
};

// "constant", "linear" or "cosine"; throws Error(kBadSpec) naming any other word.
ScheduleKind ParseScheduleKind(const std::string& name);

std::int64_t WarmupSteps(const ScheduleOptions& options);

// step counts from 1. The first of n warm-up steps has factor 0, as in transformers.
double LearningRateFactor(const ScheduleOptions& options, std::int64_t step);

}  // namespace offshoot::trainer
