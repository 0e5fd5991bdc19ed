// NVIDIA GPUs through NVML, opened at run time: the worker needs no CUDA to be built or to start.
// Thread-safe; no state is kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace offshoot::worker {

struct GpuFacts {
  int index = 0;
  std::string model;
  std::int64_t memory_bytes = 0;
  std::string driver_version;
};

// Empty when there is no driver or no GPU.
std::vector<GpuFacts> ListGpus();

}  // namespace offshoot::worker
