// Text for people: tables, states, times, the progress line. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/protobuf/timestamp.pb.h"
#include "offshoot/v1/cluster.pb.h"
#include "offshoot/v1/jobs.pb.h"

namespace offshoot::cli {

// "running"; JOB_STATE_UNSPECIFIED is "unknown".
std::string StateName(v1::JobState state);
std::string StateName(v1::WorkerState state);
// INVALID_ARGUMENT names the states there are.
absl::StatusOr<v1::JobState> ParseJobState(absl::string_view name);
bool IsTerminal(v1::JobState state);

// Columns as wide as their widest cell, two spaces apart, no trailing spaces.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

absl::Time TimeOf(const google::protobuf::Timestamp& time);
// "3 s", "2 min 5 s", ... between the two; "-" when `from` is unset.
std::string FormatAge(const google::protobuf::Timestamp& from, absl::Time now);
// "2026-11-23 15:47:53 UTC", "-" when unset.
std::string FormatTime(const google::protobuf::Timestamp& time);
// "[rank 0: 67 %, 410 tok/s, waits 0.02 s; rank 1: ...]": the part of the newest step each took.
std::string FormatRanks(const v1::Progress& progress);

// "running  step 12/40 (30 %)  loss 2.913  412 tok/s  1 min 3 s left".
std::string FormatProgress(const v1::Job& job);
// "attempt 1 on worker-1: started, step 21".
std::string FormatEvent(const v1::JobEvent& event);
// 2.9134 -> "2.913".
std::string FormatLoss(double loss);

}  // namespace offshoot::cli
