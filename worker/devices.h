// The devices a worker offers, and the words of --devices. Pure; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot::worker {

enum class DeviceKind { kCpu, kCuda };

struct DeviceChoice {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  int threads = 0;  // CPU threads of a trainer on it
  bool operator==(const DeviceChoice&) const = default;
};

std::string DeviceIdOf(const DeviceChoice& device);  // cpu:0, cuda:1

// What this machine has, to choose from.
struct MachineDevices {
  int cpu_cores = 1;
  int gpus = 0;
};

// Comma-separated `cpu:0@4` (threads after the @; without it the cores are shared out evenly) and
// `cuda:0`. Empty text: every GPU if there is any, else one CPU device with every core.
// INVALID_ARGUMENT names the word that is wrong and what would be right.
absl::StatusOr<std::vector<DeviceChoice>> ParseDevices(absl::string_view text,
                                                       const MachineDevices& machine);

}  // namespace offshoot::worker
