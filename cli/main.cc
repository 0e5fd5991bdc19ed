#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "cli/context.h"
#include "cli/interrupt.h"

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  // Debian's Abseil looks for cycles among locks at each of them, as in a debug build.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  offshoot::cli::ExitOnInterrupt();
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  offshoot::cli::Context context({std::cout, std::cerr, isatty(STDOUT_FILENO) == 1});
  const int exit_code = offshoot::cli::RunCli(arguments, context);
  std::cout.flush();
  std::cerr.flush();
  // gRPC's threads and connections end with the process: to take them down in order, and then every
  // static object, takes longer than many a command.
  _exit(exit_code);
}
