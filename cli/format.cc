#include "cli/format.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/quantity.h"

namespace offshoot::cli {
namespace {

std::string Lowered(absl::string_view enum_name, absl::string_view prefix) {
  absl::ConsumePrefix(&enum_name, prefix);
  std::string text = absl::AsciiStrToLower(enum_name);
  if (text.empty() || text == "unspecified") return "unknown";
  std::replace(text.begin(), text.end(), '_', ' ');
  return text;
}

// Columns that a text takes on a terminal, near enough: continuation bytes take none.
std::size_t Width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

}  // namespace

std::string StateName(v1::JobState state) {
  return Lowered(v1::JobState_Name(state), "JOB_STATE_");
}

std::string StateName(v1::WorkerState state) {
  return Lowered(v1::WorkerState_Name(state), "WORKER_STATE_");
}

absl::StatusOr<v1::JobState> ParseJobState(absl::string_view name) {
  std::vector<std::string> names;
  for (int value = v1::JobState_MIN + 1; value <= v1::JobState_MAX; ++value) {
    const auto state = static_cast<v1::JobState>(value);
    names.push_back(StateName(state));
    if (names.back() == name) return state;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is not a state; there are ", absl::StrJoin(names, ", ")));
}

bool IsTerminal(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED ||
         state == v1::JOB_STATE_CANCELLED;
}

std::string FormatTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - Width(row[i]) + 2, ' ');
    }
    absl::StrAppend(&text, absl::StripTrailingAsciiWhitespace(line), "\n");
  }
  return text;
}

absl::Time TimeOf(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

std::string FormatAge(const google::protobuf::Timestamp& from, absl::Time now) {
  if (from.seconds() == 0) return "-";
  return FormatSeconds(std::max<std::int64_t>(0, absl::ToInt64Seconds(now - TimeOf(from))));
}

std::string FormatTime(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", TimeOf(time), absl::UTCTimeZone());
}

std::string FormatLoss(double loss) {
  if (std::isnan(loss)) return "nan";
  return absl::StrFormat("%.3f", loss);
}

std::string FormatRanks(const v1::Progress& progress) {
  std::vector<std::string> ranks;
  for (const v1::RankMetrics& rank : progress.ranks()) {
    ranks.push_back(absl::StrFormat("rank %d: %.0f %%, %.0f tok/s, waits %.2f s", ranks.size(),
                                    100 * rank.share(), rank.tokens_per_second(),
                                    rank.wait_seconds()));
  }
  return absl::StrCat("[", absl::StrJoin(ranks, "; "), "]");
}

std::string FormatProgress(const v1::Job& job) {
  const v1::Progress& progress = job.progress();
  std::vector<std::string> parts{StateName(job.state())};
  const bool works =
      job.state() == v1::JOB_STATE_VALIDATING || job.state() == v1::JOB_STATE_STARTING ||
      job.state() == v1::JOB_STATE_RUNNING || job.state() == v1::JOB_STATE_PUBLISHING;
  if (works && !progress.stage().empty() && progress.stage() != "training") {
    parts.push_back(progress.stage());
  }
  if (progress.total_steps() > 0) {
    parts.push_back(absl::StrCat("step ", progress.step(), "/", progress.total_steps(), " (",
                                 100 * progress.step() / progress.total_steps(), " %)"));
  }
  if (progress.step() > 0)
    parts.push_back(absl::StrCat("loss ", FormatLoss(progress.train_loss())));
  if (progress.has_eval_loss()) {
    parts.push_back(absl::StrCat("held-out ", FormatLoss(progress.eval_loss())));
  }
  if (job.state() == v1::JOB_STATE_RUNNING) {
    if (progress.tokens_per_second() > 0) {
      parts.push_back(absl::StrFormat("%.0f tok/s", progress.tokens_per_second()));
    }
    if (progress.ranks_size() > 1) parts.push_back(FormatRanks(progress));
    if (progress.estimated_seconds_left() > 0) {
      parts.push_back(absl::StrCat(FormatSeconds(progress.estimated_seconds_left()), " left"));
    }
  }
  if (job.state() == v1::JOB_STATE_QUEUED && !job.message().empty()) {
    parts.push_back(job.message());
  }
  return absl::StrJoin(parts, "  ");
}

std::string FormatEvent(const v1::JobEvent& event) {
  std::string text =
      absl::StrCat(absl::FormatTime("%H:%M:%S", TimeOf(event.time()), absl::LocalTimeZone()), "  ",
                   StateName(event.state()));
  std::string type = event.type();
  std::replace(type.begin(), type.end(), '_', ' ');
  if (!type.empty() && type != StateName(event.state())) absl::StrAppend(&text, "  ", type);
  if (event.step() > 0) absl::StrAppend(&text, " at step ", event.step());
  if (event.attempt() > 1) absl::StrAppend(&text, " (attempt ", event.attempt(), ")");
  if (!event.message().empty()) absl::StrAppend(&text, ": ", event.message());
  return text;
}

}  // namespace offshoot::cli
