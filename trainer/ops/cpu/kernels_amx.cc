// Compiled with this instruction set's flags (CMakeLists.txt); entered only after the CPU was
// asked.
#define OFFSHOOT_ISA amx
#include "trainer/ops/cpu/unit.inc"
