// What the command line's exit code says.
#pragma once

#include "absl/status/status.h"

namespace offshoot::cli {

inline constexpr int kOk = 0;
inline constexpr int kFailed = 1;    // the job failed, or the coordinator did
inline constexpr int kWrongUse = 2;  // what was asked cannot be: a wrong flag, file or id
inline constexpr int kCannotReach = 3;
inline constexpr int kInterrupted = 130;

int ExitCodeOf(const absl::Status& status);

}  // namespace offshoot::cli
