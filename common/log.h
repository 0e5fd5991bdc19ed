// Log lines to stderr: time, level, thread's part. Programs call SetUpLog once; everybody uses
// spdlog's macros-free functions (spdlog::info("...")). Thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace offshoot {

// level: debug, info, warning, error. INVALID_ARGUMENT for another. name: shown in each line.
absl::Status SetUpLog(const std::string& name, const std::string& level);

}  // namespace offshoot
