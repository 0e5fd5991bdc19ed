// Ctrl-C and SIGTERM: most commands end at once with exit code 130; `run` first winds down.
#pragma once

namespace offshoot::cli {

// From now on the first signals end the process with exit code 130.
void ExitOnInterrupt();

// While one lives, signals are counted instead. One at a time; not thread-safe itself.
class InterruptCounter {
 public:
  InterruptCounter();
  ~InterruptCounter();
  int count() const;
};

}  // namespace offshoot::cli
