#include "trainer/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "trainer/error.h"

namespace offshoot::trainer {

ScheduleKind ParseScheduleKind(const std::string& name) {
  if (name == "constant") {
    return ScheduleKind::kConstant;
  }
  if (name == "linear") {
    return ScheduleKind::kLinear;
  }
  if (name == "cosine") {
    return ScheduleKind::kCosine;
  }
  throw Error(Reason::kBadSpec,
              "lr_scheduler_type '" + name + "' is unknown; use constant, linear or cosine.");
}

std::int64_t WarmupSteps(const ScheduleOptions& options) {
  if (options.warmup_steps > 0) {
    return options.warmup_steps;
  }
  // 0.1 * 30 is a hair above 3 in binary; without the margin it would round up to 4.
  const double exact = options.warmup_ratio * static_cast<double>(options.total_steps);
  return static_cast<std::int64_t>(std::ceil(exact - 1e-9));
}

double LearningRateFactor(const ScheduleOptions& options, std::int64_t step) {
  const std::int64_t done = step - 1;
  const std::int64_t warmup = WarmupSteps(options);
  if (done < warmup) {
    return static_cast<double>(done) / static_cast<double>(std::max<std::int64_t>(1, warmup));
  }
  const double span = static_cast<double>(std::max<std::int64_t>(1, options.total_steps - warmup));
  switch (options.kind) {
    case ScheduleKind::kConstant:
      return 1.0;
    case ScheduleKind::kLinear:
      return std::max(0.0, static_cast<double>(options.total_steps - done) / span);
    case ScheduleKind::kCosine: {
      const double progress = static_cast<double>(done - warmup) / span;
      return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * progress)));
    }
  }
  return 1.0;
}

}  // namespace offshoot::trainer
