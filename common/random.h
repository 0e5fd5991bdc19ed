// Random bits from the kernel, for ids, tokens and jitter. Thread-safe; no state.
#pragma once

#include <cstdint>

namespace offshoot {

// 64 random bits of getrandom(2): unpredictable, and safe after fork.
std::uint64_t RandomBits();
// Uniform in [0, 1).
double RandomUnit();

}  // namespace offshoot
