// Any bytes: a GGUF file is either refused or opens with a configuration, and each tensor loads or
// is refused.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "trainer/error.h"
#include "trainer/weights/tensor_source.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace offshoot::trainer;
  static const int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  if (descriptor < 0 || ftruncate(descriptor, 0) != 0) std::abort();
  if (pwrite(descriptor, data, size_bytes, 0) != static_cast<ssize_t>(size_bytes)) std::abort();
  try {
    const BaseModelFiles model = OpenBaseModel(path);
    for (const TensorInfo& info : model.tensors->List()) {
      model.tensors->Load(info.name, at::kBFloat16);
    }
  } catch (const Error&) {
    // A refusal is an answer.
  }
  return 0;
}
