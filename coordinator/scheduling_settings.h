// The part of the settings file that is about sharing the machines (scheduling_policy.h). Not
// thread-safe; no state.
#pragma once

#include <memory>

#include "common/settings.h"
#include "coordinator/scheduling_policy.h"

namespace offshoot {

// As it stands in the file.
struct SchedulingSettings {
  SchedulingPolicy policy;
  Settings::Table teams;
  Settings::Table queues;
};

void DeclareScheduling(Settings& settings, SchedulingSettings& given);
std::shared_ptr<const SchedulingPolicy> PolicyOf(const SchedulingSettings& given);

}  // namespace offshoot
