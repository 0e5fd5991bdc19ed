// Splits tasks over LibTorch's own thread pool: each free thread takes the next range, so that one
// that another program holds up is not waited for long. What a task computes must not depend on
// its range. Callable from any thread; nested calls run serially.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

namespace offshoot::trainer::cpu {

// run(begin, end, scratch) for ranges that cover [0, tasks); scratch is `scratch_bytes` of this
// thread's own memory, 64-byte aligned, uninitialised, kept for the next call.
using TaskRange = std::function<void(std::int64_t begin, std::int64_t end, void* scratch)>;
struct Ranges {
  std::int64_t least = 1;  // tasks that are worth a range of their own
  std::int64_t most = std::numeric_limits<std::int64_t>::max();  // 1: of big tasks of uneven cost
  std::int64_t run = 1;  // tasks [i * run, (i + 1) * run) share work: ranges end there if they can
};
constexpr Ranges kShortRows = {.least = 32};  // of tasks that read and write a row once
void ParallelTasks(std::int64_t tasks, std::size_t scratch_bytes, const TaskRange& run,
                   const Ranges& ranges);

}  // namespace offshoot::trainer::cpu
