// Any exception as what the contract reports: a reason code, one sentence, the step and the rows.
// The one place that knows LibTorch's exceptions. Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/error.h"

namespace offshoot::trainer {

struct Failure {
  Reason reason = Reason::kInternal;
  std::string message;  // one line
  std::int64_t step = 0;
  std::vector<std::int64_t> rows;
};

// Inside a catch block. LibTorch's messages are cut to their first line; its complaint of a failed
// allocation, std::bad_alloc and ENOSPC get their own reason.
Failure DescribeCurrentException();

// True inside a catch block if memory (of the host or a device) ran out.
bool CurrentExceptionIsOutOfMemory();

}  // namespace offshoot::trainer
