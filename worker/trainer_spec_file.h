// The spec files that trainers read: the coordinator's JSON with this machine's paths, device and
// threads put in. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace offshoot::worker {

struct LocalSpec {
  std::map<std::string, std::string> paths;  // JSON pointer (RFC 6901) -> local path
  std::string resume_from;                   // checkpoint directory; empty: from the beginning
  std::string device;                        // cpu or cuda:N
  int threads = 1;
  std::int64_t memory_bytes = 0;  // of that device; 0: not known
};

// INVALID_ARGUMENT when the JSON is none, or a pointer names nothing that is there.
absl::StatusOr<std::string> LocaliseSpec(const std::string& spec_json, const LocalSpec& local);

}  // namespace offshoot::worker
