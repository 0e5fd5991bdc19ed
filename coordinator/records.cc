#include "coordinator/records.h"

namespace offshoot {

absl::string_view JobStateName(JobState state) {
  switch (state) {
    case JobState::kValidating:
      return "validating";
    case JobState::kQueued:
      return "queued";
    case JobState::kStarting:
      return "starting";
    case JobState::kRunning:
      return "running";
    case JobState::kPublishing:
      return "publishing";
    case JobState::kSucceeded:
      return "succeeded";
    case JobState::kPaused:
      return "paused";
    case JobState::kFailed:
      return "failed";
    case JobState::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

}  // namespace offshoot
