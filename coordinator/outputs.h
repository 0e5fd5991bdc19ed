// Logs and metrics of attempts: what is not state. Two append-only files an attempt,
//   outputs/<job>/<attempt>.log      the trainer's text, byte for byte
//   outputs/<job>/<attempt>.metrics  one line of numbers a step or evaluation
// Repeats are dropped; each file is bounded, and what comes beyond the bound is dropped with one
// line that says so. Not synced: a crash may lose the last moments. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "coordinator/records.h"

namespace offshoot {

// One optimizer step, or one evaluation (eval_loss set); units as in offshoot.v1.StepMetrics.
struct StepRecord {
  std::int64_t step = 0;
  double epoch = 0;
  double train_loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  std::int64_t tokens = 0;
  double step_seconds = 0;
  double tokens_per_second = 0;
  std::optional<double> eval_loss;
  std::vector<RankRecord> ranks;  // with several ranks
};

struct OutputLimits {
  std::int64_t log_bytes = std::int64_t{64} << 20;  // an attempt
  std::int64_t metrics_bytes = std::int64_t{256} << 20;
};

class AttemptOutputs {
 public:
  AttemptOutputs(std::string root, OutputLimits limits) : root_(std::move(root)), limits_(limits) {}

  // offset: bytes from the start of the attempt's log. Bytes that are there already are dropped; a
  // gap is filled with a line that says how much is missing.
  absl::Status AppendLog(const JobId& job_id, std::int32_t attempt, std::int64_t offset,
                         absl::string_view data);
  absl::Status AppendMetrics(const JobId& job_id, std::int32_t attempt,
                             const std::vector<StepRecord>& steps);

  // Empty at the end; a file that is not there is empty.
  absl::StatusOr<std::string> ReadLog(const JobId& job_id, std::int32_t attempt,
                                      std::int64_t offset, std::size_t max_bytes) const;
  // Whole lines from a byte offset on, and the offset after them.
  absl::StatusOr<std::pair<std::vector<StepRecord>, std::int64_t>> ReadMetrics(
      const JobId& job_id, std::int32_t attempt, std::int64_t offset, std::size_t max_bytes) const;
  // Newest step the attempt was seen to train; 0: none.
  std::int64_t LastStep(const JobId& job_id, std::int32_t attempt) const;

  // Removes what of a job's outputs is older than `older_than`, for each job of which is_done says
  // yes.
  void Sweep(absl::Time older_than);

 private:
  std::string PathOf(const JobId& job_id, std::int32_t attempt, absl::string_view suffix) const;

  const std::string root_;
  const OutputLimits limits_;
  mutable absl::Mutex mutex_;
  // Newest (step, evaluation?) of attempts that report, so that repeats are told without reading.
  std::map<std::pair<JobId, std::int32_t>, std::pair<std::int64_t, bool>> newest_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace offshoot
