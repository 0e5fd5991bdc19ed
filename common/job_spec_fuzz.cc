// Whatever the bytes of a job file are: an answer, and what is right reads back as itself.
#include <cstdint>
#include <cstdlib>

#include "common/job_spec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const offshoot::JobSpecResult result = offshoot::CheckJobSpec(text);
  if (result.spec.has_value() != result.faults.empty()) std::abort();
  if (result.spec.has_value()) {
    const auto again = offshoot::ParseJobSpec(offshoot::FormatJobSpec(*result.spec));
    if (!again.ok() || !(*again == *result.spec)) std::abort();
  }
  return 0;
}
