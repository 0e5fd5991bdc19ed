#include "coordinator/records.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace offshoot {

int AttemptRecord::world_size() const {
  std::size_t ranks = 0;
  for (const GangMember& member : members) ranks += member.devices.size();
  return static_cast<int>(ranks);
}

const GangMember* AttemptRecord::MemberOn(const WorkerId& worker_id) const {
  const auto it = std::find_if(members.begin(), members.end(), [&](const GangMember& member) {
    return member.worker_id == worker_id;
  });
  return it == members.end() ? nullptr : &*it;
}

GangMember* AttemptRecord::MemberOn(const WorkerId& worker_id) {
  return const_cast<GangMember*>(std::as_const(*this).MemberOn(worker_id));
}

std::string AttemptRecord::WorkerNames() const {
  constexpr std::size_t kNamed = 3;
  std::string names;
  for (std::size_t i = 0; i < std::min(members.size(), kNamed); ++i) {
    absl::StrAppend(&names, i == 0 ? "" : ", ", members[i].worker_name);
  }
  if (members.size() > kNamed) {
    absl::StrAppend(&names, " and ", members.size() - kNamed, " more");
  }
  return names;
}

std::vector<WorkerId> JobRecord::WorkersThatHung() const {
  std::vector<WorkerId> hung;
  for (const AttemptRecord& attempt : attempts) {
    for (const GangMember& member : attempt.members) {
      if (member.hung) hung.push_back(member.worker_id);
    }
  }
  std::sort(hung.begin(), hung.end());
  hung.erase(std::unique(hung.begin(), hung.end()), hung.end());
  return hung;
}

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
