// Runs a command line inside a test.
#pragma once

#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cli/context.h"

namespace offshoot::cli {

struct Outcome {
  int exit_code;
  std::string out;
  std::string err;
};

inline Outcome RunWith(std::vector<std::string> arguments, bool terminal = false) {
  std::ostringstream out, err;
  Context context({out, err, terminal});
  const int exit_code = RunCli(arguments, context);
  return {exit_code, out.str(), err.str()};
}

}  // namespace offshoot::cli
