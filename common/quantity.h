// Durations and sizes as people write them, and as they read them. Pure, thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace offshoot {

// "90", "90s", "30m", "2h", "1d" -> seconds. False (and *seconds untouched) for anything else.
bool ParseSeconds(absl::string_view text, std::int64_t* seconds);
// "1024", "512MiB", "8GiB", "1TB" -> bytes. KiB to TiB are powers of 1024, kB to TB of 1000.
bool ParseBytes(absl::string_view text, std::int64_t* bytes);

// "3 s", "2 min 5 s", "1 h 2 min".
std::string FormatSeconds(std::int64_t seconds);
// "97.3 MiB".
std::string FormatBytes(std::int64_t bytes);

}  // namespace offshoot
