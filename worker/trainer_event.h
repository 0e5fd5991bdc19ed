// What a trainer says on its events pipe, parsed: one JSON object a line
// (docs/trainer-protocol.md).
//
// The trainer is another process and may be of another version, or broken: parsing is strict and
// bounded, and what is not an event becomes log text. Values; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot::worker {

// Longest event line; the longest honest one is a sample's texts.
inline constexpr std::size_t kMaxEventLineBytes = 1 << 20;

struct TrainerStage {
  std::string stage;  // loading, tokenizing, training, evaluating, exporting
};
struct TrainerPreflight {
  std::string json;  // the event's fields as one object
};
struct TrainerStarted {
  std::int64_t first_step = 0;
  std::int64_t total_steps = 0;
};
struct TrainerRankMetrics {
  double share = 0;
  double tokens_per_second = 0;
  double wait_seconds = 0;
};
struct TrainerMetrics {
  std::int64_t step = 0;
  double epoch = 0;
  double train_loss = 0;
  double grad_norm = 0;
  double learning_rate = 0;
  std::int64_t tokens = 0;
  double step_seconds = 0;
  double tokens_per_second = 0;
  std::vector<TrainerRankMetrics> ranks;  // with several ranks
};
struct TrainerEval {
  std::int64_t step = 0;
  double eval_loss = 0;
  std::optional<double> base_eval_loss;
};
struct TrainerCheckpoint {
  std::int64_t step = 0;
  std::string path;
};
// Once a second while a rank trains.
struct TrainerActivity {
  enum class Waiting { kForNothing, kForRanks, kForWorker, kOver };
  std::int64_t step = 0;
  std::string doing;
  Waiting waiting = Waiting::kForNothing;
  double seconds = 0;  // since it began what it does
};
struct TrainerSample {
  std::string prompt;
  std::string base;
  std::string derivative;
};
struct TrainerResult {
  std::string path;
  std::int64_t first_step = 0;
  std::int64_t last_step = 0;
  std::optional<double> base_eval_loss;
  std::optional<double> eval_loss;
  std::int64_t peak_memory_bytes = 0;
};
struct TrainerStopped {
  std::int64_t step = 0;
  std::string path;  // empty: no checkpoint was written
};
// Of a rank that cannot reach the others: what it adds to a round is in this file.
struct TrainerContribution {
  std::int64_t round = 0;
  std::string path;
};
struct TrainerFailed {
  std::string reason_code;
  std::string message;
  std::int64_t step = 0;
};

using TrainerEvent =
    std::variant<TrainerStage, TrainerPreflight, TrainerStarted, TrainerMetrics, TrainerEval,
                 TrainerCheckpoint, TrainerSample, TrainerResult, TrainerStopped, TrainerFailed,
                 TrainerActivity, TrainerContribution>;

// INVALID_ARGUMENT saying what is wrong with the line.
absl::StatusOr<TrainerEvent> ParseTrainerEvent(absl::string_view line);

// Cuts a byte stream into lines. A line longer than the bound is handed on in pieces marked as
// not whole, so that memory stays bounded whatever the writer does. Not thread-safe.
class LineSplitter {
 public:
  using Handler = std::function<void(absl::string_view line, bool whole)>;
  explicit LineSplitter(std::size_t max_line_bytes) : max_line_bytes_(max_line_bytes) {}
  void Add(absl::string_view data, const Handler& handler);
  void Finish(const Handler& handler);  // hands on what has no end of line

 private:
  const std::size_t max_line_bytes_;
  std::string partial_;
  bool overlong_ = false;
};

}  // namespace offshoot::worker
