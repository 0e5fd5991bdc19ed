#include "worker/inventory.h"

#include <cpuid.h>
#include <sched.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/files.h"
#include "common/process.h"

namespace offshoot::worker {
namespace {

constexpr char kCgroupRoot[] = "/sys/fs/cgroup";

// Where a cgroup file of this process may be: its own group first, then every parent up to the
// root, since a limit of any of them binds. In a container the root is the container's own group.
std::vector<std::string> CgroupFiles(absl::string_view controller, absl::string_view v1_name,
                                     absl::string_view v2_name) {
  std::vector<std::string> files;
  const absl::StatusOr<std::string> text = ReadFile("/proc/self/cgroup");
  if (!text.ok()) return files;
  for (absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    std::string root;
    absl::string_view name;
    if (parts[1].empty()) {
      root = kCgroupRoot;
      name = v2_name;
    } else {
      const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',');
      if (std::find(controllers.begin(), controllers.end(), controller) == controllers.end()) {
        continue;
      }
      root = JoinPath(kCgroupRoot, controller);
      name = v1_name;
    }
    std::string group(parts[2]);
    while (true) {
      files.push_back(JoinPath(JoinPath(root, group), name));
      if (group.empty() || group == "/") break;
      group = group.substr(0, group.rfind('/'));
    }
  }
  return files;
}

std::optional<std::int64_t> ReadNumber(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  std::int64_t value = 0;
  if (!text.ok() || !absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &value)) {
    return std::nullopt;
  }
  return value;
}

// The value after "key " in a file of such lines.
std::optional<std::int64_t> ReadKeyedNumber(const std::string& path, absl::string_view key) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return std::nullopt;
  for (absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    std::int64_t value = 0;
    if (absl::ConsumePrefix(&line, key) && absl::ConsumePrefix(&line, " ") &&
        absl::SimpleAtoi(line, &value)) {
      return value;
    }
  }
  return std::nullopt;
}

double CpuQuotaCores() {
  double cores = std::numeric_limits<double>::infinity();
  for (const std::string& path : CgroupFiles("cpu", "cpu.cfs_quota_us", "cpu.max")) {
    const absl::StatusOr<std::string> text = ReadFile(path);
    if (!text.ok()) continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(absl::StripAsciiWhitespace(*text), ' ');
    std::int64_t quota = 0;
    if (words.empty() || !absl::SimpleAtoi(words[0], &quota) || quota <= 0) continue;
    std::int64_t period = 100'000;
    if (words.size() > 1) {
      if (!absl::SimpleAtoi(words[1], &period)) continue;
    } else {
      period = ReadNumber(path.substr(0, path.rfind('/')) + "/cpu.cfs_period_us").value_or(period);
    }
    if (period > 0) cores = std::min(cores, static_cast<double>(quota) / period);
  }
  return cores;
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = 0;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = CPU_COUNT(&set);
  if (cores <= 0) cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const double quota = CpuQuotaCores();
  if (quota < cores) cores = static_cast<int>(std::floor(quota));
  return std::max(1, cores);
}

std::string CpuModel() {
  const absl::StatusOr<std::string> text = ReadFile("/proc/cpuinfo");
  if (!text.ok()) return "unknown";
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    if (absl::ConsumePrefix(&line, "model name")) {
      const std::size_t colon = line.find(':');
      if (colon != absl::string_view::npos) {
        return std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
      }
    }
  }
  return "unknown";
}

void ReadInstructionSets(CpuFacts& facts) {
#if defined(__x86_64__)
  const auto add = [&facts](bool there, const char* name) {
    if (there) facts.instruction_sets.emplace_back(name);
  };
  // __builtin_cpu_supports also asks whether the system saves the registers.
  __builtin_cpu_init();
  add(__builtin_cpu_supports("sse4.2"), "sse4.2");
  add(__builtin_cpu_supports("avx"), "avx");
  add(__builtin_cpu_supports("f16c"), "f16c");
  add(__builtin_cpu_supports("fma"), "fma");
  add(__builtin_cpu_supports("avx2"), "avx2");
  const bool avx512 = __builtin_cpu_supports("avx512f");
  add(avx512, "avx512f");
  add(__builtin_cpu_supports("avx512bw"), "avx512bw");
  add(__builtin_cpu_supports("avx512vl"), "avx512vl");
  add(__builtin_cpu_supports("avx512vnni"), "avx512_vnni");
  const bool avx512_bf16 = __builtin_cpu_supports("avx512bf16");
  add(avx512_bf16, "avx512_bf16");
  unsigned int eax = 0;
  unsigned int ebx = 0;
  unsigned int ecx = 0;
  unsigned int edx = 0;
  bool amx_bf16 = false;
  if (avx512 && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) {
    constexpr unsigned int kAmxBf16 = 1U << 22;
    constexpr unsigned int kAmxTile = 1U << 24;
    constexpr unsigned int kAmxInt8 = 1U << 25;
    amx_bf16 = (edx & kAmxBf16) != 0 && (edx & kAmxTile) != 0;
    add(amx_bf16, "amx_bf16");
    add((edx & kAmxInt8) != 0, "amx_int8");
  }
  facts.bf16 = avx512_bf16 || amx_bf16;
#else
  static_cast<void>(facts);
#endif
}

}  // namespace

CpuFacts ReadCpuFacts() {
  CpuFacts facts;
  facts.model = CpuModel();
  facts.cores = UsableCores();
  ReadInstructionSets(facts);
  return facts;
}

std::int64_t UsableMemoryBytes() {
  std::int64_t bytes = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  for (const std::string& path : CgroupFiles("memory", "memory.limit_in_bytes", "memory.max")) {
    // Without a limit version 2 says "max" and version 1 an enormous number.
    if (const std::optional<std::int64_t> limit = ReadNumber(path);
        limit.has_value() && *limit > 0) {
      bytes = std::min(bytes, *limit);
    }
  }
  return bytes;
}

std::int64_t OutOfMemoryKills() {
  for (const std::string& path : CgroupFiles("memory", "memory.oom_control", "memory.events")) {
    if (const std::optional<std::int64_t> kills = ReadKeyedNumber(path, "oom_kill")) return *kills;
  }
  return -1;
}

std::int64_t FreeDiskBytes(const std::string& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) return -1;
  return static_cast<std::int64_t>(info.f_bavail) * static_cast<std::int64_t>(info.f_frsize);
}

v1::Inventory MakeInventory(const CpuFacts& cpu, std::int64_t memory_bytes,
                            const std::vector<GpuFacts>& gpus,
                            const std::vector<DeviceChoice>& devices) {
  v1::Inventory inventory;
  char hostname[256] = {};
  gethostname(hostname, sizeof(hostname) - 1);
  inventory.set_hostname(hostname);
  inventory.set_cpu_model(cpu.model);
  inventory.set_cpu_cores(cpu.cores);
  inventory.set_memory_bytes(memory_bytes);
  inventory.set_bf16(cpu.bf16);
  inventory.set_boot_id(BootId());
  for (const std::string& name : cpu.instruction_sets) inventory.add_instruction_sets(name);
  const std::int64_t cpu_devices =
      std::count_if(devices.begin(), devices.end(),
                    [](const DeviceChoice& device) { return device.kind == DeviceKind::kCpu; });
  for (const DeviceChoice& choice : devices) {
    v1::Device* device = inventory.add_devices();
    device->set_device_id(DeviceIdOf(choice));
    device->set_threads(choice.threads);
    switch (choice.kind) {
      case DeviceKind::kCpu:
        device->set_kind("cpu");
        device->set_memory_bytes(memory_bytes / cpu_devices);
        device->set_model(cpu.model);
        break;
      case DeviceKind::kCuda:
        device->set_kind("cuda");
        for (const GpuFacts& gpu : gpus) {
          if (gpu.index != choice.index) continue;
          device->set_memory_bytes(gpu.memory_bytes);
          device->set_model(gpu.model);
          device->set_driver_version(gpu.driver_version);
        }
        break;
    }
  }
  return inventory;
}

}  // namespace offshoot::worker
