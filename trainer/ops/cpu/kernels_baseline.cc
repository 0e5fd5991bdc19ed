// Compiled with this instruction set's flags (CMakeLists.txt); entered only after the CPU was
// asked.
#define OFFSHOOT_ISA baseline
#include "trainer/ops/cpu/unit.inc"
