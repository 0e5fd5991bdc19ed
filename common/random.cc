#include "common/random.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>

namespace offshoot {

std::uint64_t RandomBits() {
  std::uint64_t bits = 0;
  ssize_t got;
  do {
    got = getrandom(&bits, sizeof(bits), 0);
  } while (got < 0 && errno == EINTR);
  // Requests of up to 256 bytes are never cut short, and fail only on a kernel without getrandom.
  if (got != static_cast<ssize_t>(sizeof(bits))) std::abort();
  return bits;
}

double RandomUnit() { return static_cast<double>(RandomBits() >> 11) * 0x1.0p-53; }

}  // namespace offshoot
