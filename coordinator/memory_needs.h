// How much memory a job needs on a device of each kind, as preflight found, and what would need
// less: what placement keeps it off devices that are too small by, and what its owner is told.
// Values; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace offshoot {

struct DeviceNeed {
  struct Change {
    std::string change;  // "gradient_checkpointing: true"
    std::int64_t bytes = 0;
    bool operator==(const Change&) const = default;
  };
  std::int64_t bytes = 0;  // 0: not known
  std::string parts;       // "weights 270 MB, ..."
  std::vector<Change> instead;
  bool operator==(const DeviceNeed&) const = default;
};

struct MemoryNeeds {
  DeviceNeed cpu;
  DeviceNeed cuda;
  bool operator==(const MemoryNeeds&) const = default;

  // Of "cpu" or "cuda".
  const DeviceNeed& On(absl::string_view kind) const { return kind == "cuda" ? cuda : cpu; }
};

// The `memory` of a preflight's answer or of FormatMemoryNeeds; bounded. Without one, or with one
// that is malformed, nothing is known.
MemoryNeeds ParseMemoryNeeds(absl::string_view json);
// "" if nothing is known.
std::string FormatMemoryNeeds(const MemoryNeeds& needs);

// "the job needs about 5.2 GB of memory on a cpu device (weights ...), and the largest of those it
// may use has 4.0 GB; it would fit with gradient_checkpointing: true (2.1 GB), or ...".
// largest_bytes: of the devices of this kind that fit otherwise; less than is needed.
std::string ExplainMemory(const DeviceNeed& need, absl::string_view kind,
                          std::int64_t largest_bytes);

}  // namespace offshoot
