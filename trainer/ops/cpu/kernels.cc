#include "trainer/ops/cpu/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>

namespace offshoot::trainer::cpu {

#if defined(__x86_64__)
namespace amx {
extern const KernelTable kTable;
}
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

#if defined(__x86_64__)
namespace {

// AMX's tiles are there if the CPU has them and the system lets this process keep their state,
// for which Linux is asked (arch/x86/include/uapi/asm/prctl.h; 5.16 or newer).
bool HasTiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kAmxBf16 = 1U << 22, kAmxTile = 1U << 24;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmxBf16) != 0 &&
         (edx & kAmxTile) != 0 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

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
  const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  add(amx::kTable, has_bf16 && HasTiles());
  add(avx512_bf16::kTable, has_bf16);
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
