// The coordinator's settings: from the file given by --config, then from the command line, which
// wins. Not thread-safe; no state.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/server.h"

namespace offshoot {

// What was said on the command line; empty: not said.
struct CommandLine {
  std::string config;
  std::string listen;
  std::string state_dir;
  std::string http_listen;
  std::vector<std::string> allowed_roots;
  std::string address_file;
  std::string http_address_file;
  std::string log_level;
  bool insecure = false;
  bool print_settings = false;
};

struct ProgramOptions {
  ServerOptions server;
  std::string address_file;
  std::string http_address_file;
  std::string log_level = "info";
};

absl::Status Combine(const CommandLine& command_line, ProgramOptions* options);
// Every setting with its default, unit and meaning, as a file (configs/coordinator.yaml).
std::string DocumentSettings();

}  // namespace offshoot
