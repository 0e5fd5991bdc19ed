// offshoot-coordinator: takes jobs in, places them on workers, publishes what comes out.
#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <iostream>

#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/files.h"
#include "common/log.h"
#include "coordinator/options.h"
#include "coordinator/server.h"

namespace offshoot {
namespace {

constexpr int kFailed = 1;
constexpr int kWrongUse = 2;

int Fail(const absl::Status& status) {
  std::cerr << "offshoot-coordinator: " << status.message() << "\n";
  return absl::IsInvalidArgument(status) ? kWrongUse : kFailed;
}

// Blocks SIGINT and SIGTERM for all threads and waits for one of them.
class StopSignals {
 public:
  StopSignals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    descriptor_ = signalfd(-1, &set, SFD_CLOEXEC);
  }
  ~StopSignals() { close(descriptor_); }
  void Wait() const {
    pollfd poll_descriptor{descriptor_, POLLIN, 0};
    while (poll(&poll_descriptor, 1, -1) < 0) {
    }
  }

 private:
  int descriptor_;
};

int Main(int argc, char** argv) {
  ProgramOptions options;
  CommandLine command_line;
  CLI::App app(
      "The coordinator of an Offshoot cluster: takes jobs in, places them on workers, "
      "publishes what comes out.",
      "offshoot-coordinator");
  app.set_version_flag("--version", OFFSHOOT_VERSION);
  app.add_option("--config", command_line.config,
                 "YAML file of settings (configs/coordinator.yaml)");
  app.add_option("--listen", command_line.listen, "HOST:PORT; port 0 takes any [127.0.0.1:7070]");
  app.add_option("--state-dir", command_line.state_dir, "directory for jobs, artifacts and logs");
  app.add_option("--http-listen,--metrics-listen", command_line.http_listen,
                 "HOST:PORT of the HTTP port: metrics, health, and models as a hub [none]");
  app.add_option("--http-address-file", command_line.http_address_file,
                 "file that gets the HTTP port's address once it is bound");
  app.add_option("--allowed-root", command_line.allowed_roots,
                 "directory that jobs may name files of; may be said more than once");
  app.add_option("--address-file", command_line.address_file,
                 "file that gets the address once it is bound");
  app.add_option("--log-level", command_line.log_level, "debug, info, warning or error [info]");
  app.add_flag("--insecure", command_line.insecure,
               "allow an address that is not loopback although there is no TLS");
  app.add_flag("--print-settings", command_line.print_settings,
               "print every setting with its default, and exit");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : kWrongUse;
  }
  if (command_line.print_settings) {
    std::cout << DocumentSettings();
    return 0;
  }
  if (absl::Status status = Combine(command_line, &options); !status.ok()) return Fail(status);
  if (absl::Status status = SetUpLog("coordinator", options.log_level); !status.ok()) {
    return Fail(status);
  }
  // Distributions build Abseil with it; it costs a few per cent of every request.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const StopSignals signals;  // before any thread is made
  std::signal(SIGPIPE, SIG_IGN);
  const RealClock clock;
  absl::StatusOr<std::unique_ptr<CoordinatorServer>> server =
      CoordinatorServer::Start(options.server, clock);
  if (!server.ok()) return Fail(server.status());
  if (!options.address_file.empty()) {
    absl::Status status = WriteFileAtomically(options.address_file, (*server)->address() + "\n");
    if (!status.ok()) return Fail(status);
  }
  if (!options.http_address_file.empty() && (*server)->http_port() != 0) {
    const std::string& where = options.server.http_listen;
    absl::Status status = WriteFileAtomically(
        options.http_address_file,
        where.substr(0, where.rfind(':') + 1) + std::to_string((*server)->http_port()) + "\n");
    if (!status.ok()) return Fail(status);
  }
  std::cout << "listening on " << (*server)->address() << std::endl;
  signals.Wait();
  server->reset();
  return 0;
}

}  // namespace
}  // namespace offshoot

int main(int argc, char** argv) { return offshoot::Main(argc, argv); }
