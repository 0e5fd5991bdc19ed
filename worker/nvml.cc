#include "worker/nvml.h"

#include <dlfcn.h>

#include <algorithm>

namespace offshoot::worker {
namespace {

// The part of nvml.h that is used; NVML keeps these stable across driver versions.
using NvmlDevice = struct NvmlDeviceOpaque*;
struct NvmlMemory {
  unsigned long long total, free, used;
};
constexpr int kNvmlSuccess = 0;
constexpr unsigned int kTextBytes = 96;
constexpr unsigned int kMaxGpus = 64;

class Library {
 public:
  Library() : handle_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {}
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    if (handle_ != nullptr) dlclose(handle_);
  }
  bool open() const { return handle_ != nullptr; }
  template <typename Function>
  Function* Find(const char* name) const {
    return reinterpret_cast<Function*>(dlsym(handle_, name));
  }

 private:
  void* handle_;
};

}  // namespace

std::vector<GpuFacts> ListGpus() {
  const Library library;
  if (!library.open()) return {};
  const auto init = library.Find<int()>("nvmlInit_v2");
  const auto shutdown = library.Find<int()>("nvmlShutdown");
  const auto count = library.Find<int(unsigned int*)>("nvmlDeviceGetCount_v2");
  const auto handle = library.Find<int(unsigned int, NvmlDevice*)>("nvmlDeviceGetHandleByIndex_v2");
  const auto name = library.Find<int(NvmlDevice, char*, unsigned int)>("nvmlDeviceGetName");
  const auto memory = library.Find<int(NvmlDevice, NvmlMemory*)>("nvmlDeviceGetMemoryInfo");
  const auto driver = library.Find<int(char*, unsigned int)>("nvmlSystemGetDriverVersion");
  if (init == nullptr || shutdown == nullptr || count == nullptr || handle == nullptr ||
      name == nullptr || memory == nullptr || driver == nullptr || init() != kNvmlSuccess) {
    return {};
  }
  std::vector<GpuFacts> gpus;
  char version[kTextBytes] = {};
  driver(version, kTextBytes);
  unsigned int number = 0;
  if (count(&number) != kNvmlSuccess) number = 0;
  for (unsigned int index = 0; index < std::min(number, kMaxGpus); ++index) {
    NvmlDevice device = nullptr;
    char text[kTextBytes] = {};
    NvmlMemory bytes = {};
    if (handle(index, &device) != kNvmlSuccess || name(device, text, kTextBytes) != kNvmlSuccess ||
        memory(device, &bytes) != kNvmlSuccess) {
      continue;
    }
    gpus.push_back(
        {static_cast<int>(index), text, static_cast<std::int64_t>(bytes.total), version});
  }
  shutdown();
  return gpus;
}

}  // namespace offshoot::worker
