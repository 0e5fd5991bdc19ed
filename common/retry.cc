#include "common/retry.h"

#include <algorithm>

#include "common/random.h"

namespace offshoot {

absl::Duration Backoff::Next(double random) {
  const absl::Duration full = std::min(next_, options_.largest);
  next_ = std::min(full * options_.factor, options_.largest);
  return full * (1.0 - options_.jitter * random);
}

absl::Duration Backoff::Next() { return Next(RandomUnit()); }

}  // namespace offshoot
