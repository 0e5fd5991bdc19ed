#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "cli/context.h"
#include "cli/interrupt.h"

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  offshoot::cli::ExitOnInterrupt();
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return offshoot::cli::RunCli(arguments, {std::cout, std::cerr, isatty(STDOUT_FILENO) == 1});
}
