#include "trainer/ops/cpu/parallel.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

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

void ParallelTasks(std::int64_t tasks, std::size_t scratch_bytes, const TaskRange& run) {
  at::parallel_for(0, tasks, 1, [&](std::int64_t begin, std::int64_t end) {
    run(begin, end, Scratch(scratch_bytes));
  });
}

void ParallelTasksByCost(std::int64_t tasks, std::size_t scratch_bytes,
                         const std::function<double(std::int64_t)>& cost, const TaskRange& run) {
  const std::int64_t threads = std::min<std::int64_t>(at::get_num_threads(), tasks);
  if (threads <= 1) return ParallelTasks(tasks, scratch_bytes, run);
  double total = 0;
  for (std::int64_t i = 0; i < tasks; ++i) total += cost(i);
  std::vector<std::int64_t> cuts(static_cast<std::size_t>(threads) + 1, tasks);
  cuts[0] = 0;
  double sum = 0;
  std::size_t next = 1;
  for (std::int64_t i = 0; i < tasks; ++i) {
    const double half = cost(i) / 2;
    while (next < static_cast<std::size_t>(threads) &&
           sum + half >= total * static_cast<double>(next) / static_cast<double>(threads)) {
      cuts[next++] = i;
    }
    sum += 2 * half;
  }
  at::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto index = static_cast<std::size_t>(i);
      if (cuts[index] < cuts[index + 1]) {
        run(cuts[index], cuts[index + 1], Scratch(scratch_bytes));
      }
    }
  });
}

void ParallelQueue(std::int64_t tasks, const std::function<void(std::int64_t)>& run) {
  std::atomic<std::int64_t> next{0};
  at::parallel_for(0, std::min<std::int64_t>(at::get_num_threads(), tasks), 1,
                   [&](std::int64_t, std::int64_t) {
                     const at::NoGradGuard no_grad;  // the pool's threads have a mode of their own
                     for (std::int64_t i = next++; i < tasks; i = next++) run(i);
                   });
}

}  // namespace offshoot::trainer::cpu
