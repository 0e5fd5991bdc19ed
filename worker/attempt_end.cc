#include "worker/attempt_end.h"

#include <signal.h>
#include <string.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace offshoot::worker {
namespace {

constexpr int kWrongUseCode = 2;

std::string SignalText(int number) {
  const char* name = sigabbrev_np(number);
  return name == nullptr ? absl::StrCat("signal ", number) : absl::StrCat("SIG", name);
}

// A fault of the machine may not be there on another; a fault of the job is.
bool IsRetryable(const std::string& reason_code) {
  return reason_code == "INTERNAL" || reason_code == "DISK_FULL" || reason_code == kRankLost;
}

std::string LastLine(const std::string& log) {
  const std::vector<absl::string_view> lines = absl::StrSplit(log, '\n');
  for (auto line = lines.rbegin(); line != lines.rend(); ++line) {
    const absl::string_view text = absl::StripAsciiWhitespace(*line);
    if (!text.empty()) return std::string(text.substr(0, 500));
  }
  return "";
}

std::string RankText(const TrainerExit& exit, int rank, int first_rank) {
  return exit.ranks.size() > 1 || first_rank > 0
             ? absl::StrCat("rank ", first_rank + rank, " of the trainer")
             : "the trainer";
}

// The rank that a signal ended, the first to end before the others: one that ended because it
// lost the others is none. -1: none.
int RankEndedBySignal(const TrainerExit& exit) {
  const auto signalled = [&exit](int rank) {
    return rank >= 0 && exit.ranks[static_cast<std::size_t>(rank)].signalled;
  };
  if (signalled(exit.first_failed_rank)) return exit.first_failed_rank;
  for (int rank = 0; rank < static_cast<int>(exit.ranks.size()); ++rank) {
    if (signalled(rank)) return rank;
  }
  return -1;
}

}  // namespace

AttemptEnd ExplainExit(const TrainerExit& exit, const std::optional<TrainerFailed>& failed,
                       int failed_rank, int first_rank) {
  const int killed = RankEndedBySignal(exit);
  const bool killed_is_the_cause =
      failed.has_value() && failed->reason_code == kRankLost && killed >= 0;
  if (failed.has_value() && !killed_is_the_cause) {
    return {failed->reason_code.empty() ? "TRAINER_ERROR" : failed->reason_code,
            exit.ranks.size() > 1 || first_rank > 0
                ? absl::StrCat("rank ", first_rank + failed_rank, ": ", failed->message)
                : failed->message,
            IsRetryable(failed->reason_code)};
  }
  const int rank = killed_is_the_cause ? killed : std::max(0, exit.first_failed_rank);
  const ExitStatus status =
      exit.ranks.empty() ? ExitStatus{} : exit.ranks[static_cast<std::size_t>(rank)];
  const std::string who = RankText(exit, rank, first_rank);
  if (status.signalled && status.code == SIGKILL && exit.out_of_memory_killed) {
    return {"OUT_OF_MEMORY",
            absl::StrCat("the kernel's out-of-memory killer ended ", who,
                         "; lower per_device_train_batch_size or sequence_len, or set "
                         "gradient_checkpointing: true"),
            false};
  }
  if (status.signalled) {
    return {"TRAINER_KILLED", absl::StrCat(who, " was ended by ", SignalText(status.code)), true};
  }
  const std::string last = LastLine(exit.log_tail);
  const std::string said = last.empty() ? "" : absl::StrCat("; its last line: ", last);
  if (status.code == kWrongUseCode) {
    return {"TRAINER_ERROR",
            absl::StrCat(who,
                         " refused how this worker started it (are worker and trainer of the "
                         "same version?)",
                         said),
            false};
  }
  if (status.code == 0) {
    return {"TRAINER_ERROR", absl::StrCat(who, " ended without leaving a result", said), true};
  }
  return {"TRAINER_ERROR",
          absl::StrCat(who, " ended with exit code ", status.code, " and gave no reason", said),
          true};
}

AttemptEnd ExplainVerifyExit(const TrainerExit& exit) {
  const ExitStatus status = exit.ranks.empty() ? ExitStatus{} : exit.ranks[0];
  if (status.signalled && exit.out_of_memory_killed) {
    return {"OUT_OF_MEMORY",
            "the kernel's out-of-memory killer ended the verification of the result", true};
  }
  if (status.signalled) {
    return {"TRAINER_KILLED",
            absl::StrCat("the verification of the result was ended by ", SignalText(status.code)),
            true};
  }
  const std::string last = LastLine(exit.log_tail);
  return {"VERIFY_FAILED",
          absl::StrCat("the exported files, loaded afresh from disk, do not give the trained "
                       "model's logits; nothing was published",
                       last.empty() ? "" : absl::StrCat(": ", last)),
          false};
}

AttemptEnd ExplainTaskFailure(const absl::Status& status) {
  const std::string message(status.message());
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return {"DISK_FULL", message, true};
    case absl::StatusCode::kInvalidArgument:
      return {"BAD_SPEC", message, false};
    case absl::StatusCode::kDataLoss:
      return {"INPUT_CORRUPT", message, true};
    case absl::StatusCode::kNotFound:
      return {"INPUT_MISSING", message, true};
    default:
      return {"WORKER_ERROR", message, true};
  }
}

}  // namespace offshoot::worker
