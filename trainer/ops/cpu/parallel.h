// Splits tasks over LibTorch's own thread pool. Deterministic: thread i of n gets the i-th
// contiguous range. Callable from any thread; nested calls run serially.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace offshoot::trainer::cpu {

// run(begin, end, scratch) for ranges that cover [0, tasks); scratch is `scratch_bytes` of this
// thread's own memory, 64-byte aligned, uninitialised, kept for the next call.
using TaskRange = std::function<void(std::int64_t begin, std::int64_t end, void* scratch)>;
void ParallelTasks(std::int64_t tasks, std::size_t scratch_bytes, const TaskRange& run);

// The same where task i costs cost(i): ranges of about equal cost instead of equal count.
void ParallelTasksByCost(std::int64_t tasks, std::size_t scratch_bytes,
                         const std::function<double(std::int64_t)>& cost, const TaskRange& run);

// Big tasks of uneven cost: each free thread takes the next one, in order. What a task does must
// not depend on who runs it; LibTorch's operations inside run serially and without autograd.
void ParallelQueue(std::int64_t tasks, const std::function<void(std::int64_t)>& run);

}  // namespace offshoot::trainer::cpu
