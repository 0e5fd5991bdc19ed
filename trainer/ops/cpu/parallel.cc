#include "trainer/ops/cpu/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

namespace offshoot::trainer::cpu {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Grows, never shrinks: a thread's scratch is asked for thousands of times a step.
void* Scratch(std::size_t bytes) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local std::size_t size = 0;
  if (bytes > size) {
    memory.reset();
    size = 0;
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    memory.reset(std::aligned_alloc(4096, rounded));
    if (memory == nullptr) throw std::bad_alloc();
    size = rounded;
  }
  return memory.get();
}

}  // namespace

void ParallelTasks(std::int64_t tasks, std::size_t scratch_bytes, const TaskRange& run,
                   const Ranges& ranges) {
  const std::int64_t threads =
      at::in_parallel_region() ? 1
                               : std::min<std::int64_t>(at::get_num_threads(),
                                                        (tasks + ranges.least - 1) / ranges.least);
  if (threads <= 1) {
    if (tasks > 0) run(0, tasks, Scratch(scratch_bytes));
    return;
  }
  const auto end_of = [&](std::int64_t begin) {
    // Large ranges first, smaller ones to end together.
    const std::int64_t fair = std::min(ranges.most, 2 * (tasks - begin) / (3 * threads));
    const std::int64_t end = begin + std::max(ranges.least, fair);
    const std::int64_t whole = end / ranges.run * ranges.run;
    return std::min(tasks, whole > begin ? whole : end);
  };
  std::atomic<std::int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](std::int64_t, std::int64_t) {
    for (std::int64_t begin = next; begin < tasks;) {
      const std::int64_t end = end_of(begin);
      if (!next.compare_exchange_weak(begin, end)) continue;
      run(begin, end, Scratch(scratch_bytes));
      begin = next;
    }
  });
}

}  // namespace offshoot::trainer::cpu
