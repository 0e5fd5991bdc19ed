#include "trainer/ops/cpu/kernels.h"

#include <cstdlib>
#include <cstring>

namespace offshoot::trainer::cpu {

#if defined(__x86_64__)
namespace avx512_bf16 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
#endif
namespace baseline {
extern const KernelTable kTable;
}

std::size_t RunnableKernels(const KernelTable** tables, std::size_t capacity) {
  std::size_t count = 0;
  const auto add = [&](const KernelTable& table, bool runnable) {
    if (runnable && count < capacity) tables[count++] = &table;
  };
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  add(avx512_bf16::kTable, has_avx512 && __builtin_cpu_supports("avx512bf16"));
  add(avx512::kTable, has_avx512);
  add(avx2::kTable, has_avx2);
#endif
  add(baseline::kTable, true);
  return count;
}

const KernelTable& Kernels() {
  static const KernelTable* const table = [] {
    const KernelTable* tables[8];
    const std::size_t count = RunnableKernels(tables, 8);
    const char* wanted = std::getenv("OFFSHOOT_CPU_KERNELS");
    for (std::size_t i = 0; wanted != nullptr && i < count; ++i) {
      if (std::strcmp(tables[i]->name, wanted) == 0) return tables[i];
    }
    return tables[0];
  }();
  return *table;
}

}  // namespace offshoot::trainer::cpu
