// Any bytes: ParseSafetensorsHeader either refuses them or gives ranges that lie inside them.
#include <cstdlib>

#include "trainer/error.h"
#include "trainer/weights/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
  using namespace offshoot::trainer;
  try {
    const SafetensorsHeader header = ParseSafetensorsHeader(data, size_bytes, "fuzz");
    for (const SafetensorsEntry& entry : header.entries) {
      if (entry.begin > entry.end || entry.end > size_bytes) std::abort();
    }
  } catch (const Error&) {
    // A refusal is an answer.
  }
  return 0;
}
