#include "worker/devices.h"

#include <algorithm>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace offshoot::worker {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kMaxThreads = 1024;

absl::Status WrongDevice(absl::string_view word, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("--devices: \"", word, "\" ", why,
                                                 "; write for example cpu:0@4 (4 threads) or "
                                                 "cuda:0, separated by commas"));
}

absl::StatusOr<DeviceChoice> ParseDevice(absl::string_view word, const MachineDevices& machine) {
  DeviceChoice device;
  absl::string_view rest = word;
  if (absl::ConsumePrefix(&rest, "cpu:")) {
    device.kind = DeviceKind::kCpu;
  } else if (absl::ConsumePrefix(&rest, "cuda:")) {
    device.kind = DeviceKind::kCuda;
  } else {
    return WrongDevice(word, "is neither a cpu nor a cuda device");
  }
  const std::vector<absl::string_view> parts = absl::StrSplit(rest, '@');
  if (!absl::SimpleAtoi(parts[0], &device.index) || device.index < 0) {
    return WrongDevice(word, "has no number after the colon");
  }
  if (parts.size() > 2) return WrongDevice(word, "has more than one @");
  if (parts.size() == 2 && (!absl::SimpleAtoi(parts[1], &device.threads) || device.threads < 1 ||
                            device.threads > kMaxThreads)) {
    return WrongDevice(word, absl::StrCat("asks for no number of threads from 1 to ", kMaxThreads));
  }
  if (device.kind == DeviceKind::kCuda && device.index >= machine.gpus) {
    return WrongDevice(
        word, machine.gpus == 0
                  ? "is not there: no NVIDIA GPU was found on this machine"
                  : absl::StrCat("is not there: this machine has ", machine.gpus, " GPUs"));
  }
  return device;
}

// Devices without a number of threads share the cores that the others left.
void ShareThreads(std::vector<DeviceChoice>& devices, int cores) {
  int without = 0;
  int left = cores;
  for (const DeviceChoice& device : devices) {
    if (device.threads == 0) ++without;
    left -= device.threads;
  }
  if (without == 0) return;
  const int each = std::max(1, left / without);
  for (DeviceChoice& device : devices) {
    if (device.threads == 0) device.threads = each;
  }
}

}  // namespace

std::string DeviceIdOf(const DeviceChoice& device) {
  return absl::StrCat(device.kind == DeviceKind::kCpu ? "cpu:" : "cuda:", device.index);
}

absl::StatusOr<std::vector<DeviceChoice>> ParseDevices(absl::string_view text,
                                                       const MachineDevices& machine) {
  std::vector<DeviceChoice> devices;
  if (absl::StripAsciiWhitespace(text).empty()) {
    for (int index = 0; index < std::min(machine.gpus, kMaxDevices); ++index) {
      devices.push_back({DeviceKind::kCuda, index, 0});
    }
    if (devices.empty()) devices.push_back({DeviceKind::kCpu, 0, 0});
    ShareThreads(devices, machine.cpu_cores);
    return devices;
  }
  std::set<std::string> seen;
  for (absl::string_view word : absl::StrSplit(text, ',')) {
    word = absl::StripAsciiWhitespace(word);
    ASSIGN_OR_RETURN(DeviceChoice device, ParseDevice(word, machine));
    if (!seen.insert(DeviceIdOf(device)).second) return WrongDevice(word, "is named twice");
    devices.push_back(device);
    if (devices.size() > kMaxDevices) {
      return WrongDevice(word, absl::StrCat("is one too many: at most ", kMaxDevices));
    }
  }
  ShareThreads(devices, machine.cpu_cores);
  return devices;
}

}  // namespace offshoot::worker
