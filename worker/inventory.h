// What this machine is: CPU, memory, instruction sets, GPUs, as the coordinator wants to know it.
//
// Respects what the process may use, not what the machine has: CPU affinity and the CPU and memory
// limits of its cgroup (versions 1 and 2). Reads /proc and /sys; thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "offshoot/v1/cluster.pb.h"
#include "worker/devices.h"
#include "worker/nvml.h"

namespace offshoot::worker {

struct CpuFacts {
  std::string model;
  int cores = 1;  // usable by this process, at least 1
  std::vector<std::string> instruction_sets;
  bool bf16 = false;  // multiplies bf16 natively: avx512_bf16 or amx_bf16
};

CpuFacts ReadCpuFacts();
std::int64_t UsableMemoryBytes();

// How often the kernel's OOM killer has struck in this process's cgroup; -1 when it cannot be told.
std::int64_t OutOfMemoryKills();

// Free bytes for this user on the file system of path; -1 when it cannot be told.
std::int64_t FreeDiskBytes(const std::string& path);

v1::Inventory MakeInventory(const CpuFacts& cpu, std::int64_t memory_bytes,
                            const std::vector<GpuFacts>& gpus,
                            const std::vector<DeviceChoice>& devices);

}  // namespace offshoot::worker
