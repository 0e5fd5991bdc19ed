// Bounded exponential backoff with jitter. Values and pure functions; the caller waits.
#pragma once

#include "absl/time/time.h"

namespace offshoot {

struct BackoffOptions {
  absl::Duration first = absl::Milliseconds(50);
  absl::Duration largest = absl::Seconds(5);
  double factor = 2.0;
  double jitter = 0.5;  // a wait is shortened by up to this part, so that clients part ways
};

// One sequence of waits. Not thread-safe.
class Backoff {
 public:
  explicit Backoff(BackoffOptions options = {}) : options_(options), next_(options.first) {}

  // The next wait; random is uniform in [0, 1).
  absl::Duration Next(double random);
  // The same with random bits of the kernel.
  absl::Duration Next();
  // After a success.
  void Reset() { next_ = options_.first; }

 private:
  BackoffOptions options_;
  absl::Duration next_;
};

}  // namespace offshoot
