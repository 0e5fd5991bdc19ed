#include "worker/trainer_event.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"

namespace offshoot::worker {
namespace {

using nlohmann::json;

// Reads the fields of one event and remembers the first that is wrong.
class FieldReader {
 public:
  explicit FieldReader(const json& object) : object_(object) {}

  std::string Text(const char* name, std::size_t max_bytes) {
    const json* value = Find(name);
    if (value == nullptr) return "";
    if (!value->is_string() || value->get_ref<const std::string&>().size() > max_bytes) {
      Fail(name, "a text of bounded length");
      return "";
    }
    return value->get<std::string>();
  }

  std::string OptionalText(const char* name, std::size_t max_bytes) {
    return Has(name) ? Text(name, max_bytes) : "";
  }

  std::int64_t Count(const char* name) {
    const json* value = Find(name);
    if (value == nullptr) return 0;
    if (!value->is_number_integer() || value->get<std::int64_t>() < 0) {
      Fail(name, "a count");
      return 0;
    }
    return value->get<std::int64_t>();
  }

  std::int64_t OptionalCount(const char* name) { return Has(name) ? Count(name) : 0; }

  double Number(const char* name) {
    const json* value = Find(name);
    if (value == nullptr) return 0;
    if (value->is_number()) return value->get<double>();
    if (*value == "nan") return std::numeric_limits<double>::quiet_NaN();
    if (*value == "inf") return std::numeric_limits<double>::infinity();
    if (*value == "-inf") return -std::numeric_limits<double>::infinity();
    Fail(name, "a number");
    return 0;
  }

  std::optional<double> OptionalNumber(const char* name) {
    if (!Has(name)) return std::nullopt;
    return Number(name);
  }

  // Empty where there is none.
  std::vector<json> OptionalList(const char* name, std::size_t max_items) {
    if (!Has(name)) return {};
    const json* value = Find(name);
    if (!value->is_array() || value->size() > max_items) {
      Fail(name, "a list of bounded length");
      return {};
    }
    return value->get<std::vector<json>>();
  }

  void Adopt(const absl::Status& status) { status_.Update(status); }

  bool Has(const char* name) const {
    const auto found = object_.find(name);
    return found != object_.end() && !found->is_null();
  }

  absl::Status status() const { return status_; }

 private:
  const json* Find(const char* name) {
    const auto found = object_.find(name);
    if (found == object_.end()) {
      Fail(name, "there");
      return nullptr;
    }
    return &*found;
  }

  void Fail(const char* name, const char* wanted) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat("its field ", name, " is not ", wanted));
    }
  }

  const json& object_;
  absl::Status status_;
};

constexpr std::size_t kMaxRanksInMetrics = 64;
constexpr std::size_t kMaxPathBytes = 4096;
constexpr std::size_t kMaxCodeBytes = 64;
constexpr std::size_t kMaxMessageBytes = 16 << 10;

TrainerMetrics ReadMetrics(FieldReader& fields) {
  TrainerMetrics metrics;
  metrics.step = fields.Count("step");
  metrics.epoch = fields.Number("epoch");
  metrics.train_loss = fields.Number("train_loss");
  metrics.grad_norm = fields.Number("grad_norm");
  metrics.learning_rate = fields.Number("learning_rate");
  metrics.tokens = fields.Count("tokens");
  metrics.step_seconds = fields.Number("step_seconds");
  metrics.tokens_per_second = fields.Number("tokens_per_second");
  for (const json& rank : fields.OptionalList("ranks", kMaxRanksInMetrics)) {
    FieldReader of_rank(rank);
    metrics.ranks.push_back({of_rank.Number("share"), of_rank.Number("tokens_per_second"),
                             of_rank.Number("wait_seconds")});
    fields.Adopt(of_rank.status());
  }
  return metrics;
}

TrainerActivity ReadActivity(FieldReader& fields) {
  using Waiting = TrainerActivity::Waiting;
  TrainerActivity activity;
  activity.step = fields.Count("step");
  activity.doing = fields.Text("doing", kMaxCodeBytes * 4);
  const std::string waiting = fields.OptionalText("waiting_for", kMaxCodeBytes);
  activity.waiting = waiting == "ranks"    ? Waiting::kForRanks
                     : waiting == "worker" ? Waiting::kForWorker
                     : waiting == "over"   ? Waiting::kOver
                                           : Waiting::kForNothing;
  activity.seconds = fields.Number("seconds");
  return activity;
}

TrainerResult ReadResult(FieldReader& fields) {
  TrainerResult result;
  result.path = fields.Text("path", kMaxPathBytes);
  result.first_step = fields.Count("first_step");
  result.last_step = fields.Count("last_step");
  result.base_eval_loss = fields.OptionalNumber("base_eval_loss");
  result.eval_loss = fields.OptionalNumber("eval_loss");
  result.peak_memory_bytes = fields.OptionalCount("peak_memory_bytes");
  return result;
}

std::optional<TrainerEvent> ReadEvent(const std::string& name, const json& object,
                                      FieldReader& fields) {
  if (name == "stage") return TrainerStage{fields.Text("stage", kMaxCodeBytes)};
  if (name == "preflight") return TrainerPreflight{object.dump()};
  if (name == "started") {
    return TrainerStarted{fields.Count("first_step"), fields.Count("total_steps")};
  }
  if (name == "metrics") return ReadMetrics(fields);
  if (name == "activity") return ReadActivity(fields);
  if (name == "eval") {
    return TrainerEval{fields.Count("step"), fields.Number("eval_loss"),
                       fields.OptionalNumber("base_eval_loss")};
  }
  if (name == "checkpoint") {
    return TrainerCheckpoint{fields.Count("step"), fields.Text("path", kMaxPathBytes)};
  }
  if (name == "contribution") {
    return TrainerContribution{fields.Count("round"), fields.Text("path", kMaxPathBytes)};
  }
  if (name == "sample") {
    return TrainerSample{fields.Text("prompt", kMaxEventLineBytes),
                         fields.Text("base", kMaxEventLineBytes),
                         fields.Text("derivative", kMaxEventLineBytes)};
  }
  if (name == "result") return ReadResult(fields);
  if (name == "stopped") {
    return TrainerStopped{fields.Count("step"), fields.OptionalText("path", kMaxPathBytes)};
  }
  if (name == "failed") {
    return TrainerFailed{fields.Text("reason_code", kMaxCodeBytes),
                         fields.Text("message", kMaxMessageBytes), fields.OptionalCount("step")};
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<TrainerEvent> ParseTrainerEvent(absl::string_view line) {
  if (line.size() > kMaxEventLineBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the line is longer than ", kMaxEventLineBytes, " bytes"));
  }
  // Depth is bounded by hand: the library recurses when it destroys nested values.
  constexpr int kMaxDepth = 16;
  const json::parser_callback_t shallow = [](int depth, json::parse_event_t, json&) {
    return depth <= kMaxDepth;
  };
  json object = json::parse(line.begin(), line.end(), shallow, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("the line is not a JSON object");
  const auto name = object.find("event");
  if (name == object.end() || !name->is_string()) {
    return absl::InvalidArgumentError("the object has no text field `event`");
  }
  const std::string event_name = name->get<std::string>();
  if (event_name == "preflight") {
    object.erase("event");
    object.erase("time");
  }
  FieldReader fields(object);
  std::optional<TrainerEvent> event = ReadEvent(event_name, object, fields);
  if (!event.has_value()) return absl::InvalidArgumentError("its event name is unknown");
  if (!fields.status().ok()) return fields.status();
  return *std::move(event);
}

void LineSplitter::Add(absl::string_view data, const Handler& handler) {
  while (!data.empty()) {
    const std::size_t end = data.find('\n');
    const absl::string_view piece = data.substr(0, end);
    if (partial_.size() + piece.size() > max_line_bytes_) {
      const std::size_t room = max_line_bytes_ - partial_.size();
      partial_.append(piece.data(), room);
      handler(partial_, /*whole=*/false);
      partial_.clear();
      overlong_ = true;
      data.remove_prefix(room);
      continue;
    }
    partial_.append(piece.data(), piece.size());
    if (end == absl::string_view::npos) return;
    handler(partial_, /*whole=*/!overlong_);
    partial_.clear();
    overlong_ = false;
    data.remove_prefix(end + 1);
  }
}

void LineSplitter::Finish(const Handler& handler) {
  if (!partial_.empty()) handler(partial_, /*whole=*/!overlong_);
  partial_.clear();
  overlong_ = false;
}

}  // namespace offshoot::worker
