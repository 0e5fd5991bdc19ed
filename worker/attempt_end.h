// Why an attempt ended, as one sentence, a code and whether another try makes sense.
// Pure; thread-safe. The codes are listed in docs/reason-codes.md.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "worker/trainer_event.h"
#include "worker/trainer_process.h"

namespace offshoot::worker {

struct AttemptEnd {
  std::string reason_code;
  std::string message;
  bool retryable = false;
};

// Another rank is gone: told only where the cause is not known here.
inline constexpr char kRankLost[] = "RANK_LOST";

// failed: what the trainer said of it, if it said anything; failed_rank: which rank here said it;
// first_rank: the gang's number of rank 0 here.
AttemptEnd ExplainExit(const TrainerExit& exit, const std::optional<TrainerFailed>& failed,
                       int failed_rank, int first_rank = 0);
AttemptEnd ExplainVerifyExit(const TrainerExit& exit);
// Preparing, launching or uploading failed with status.
AttemptEnd ExplainTaskFailure(const absl::Status& status);

}  // namespace offshoot::worker
