// offshoot-worker: offers this machine's devices to a coordinator. Parses flags, wires, waits.

#include <grpcpp/security/credentials.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/channel_security.h"
#include "common/files.h"
#include "common/log.h"
#include "common/process.h"
#include "common/settings.h"
#include "common/status_macros.h"
#include "worker/descriptor.h"
#include "worker/devices.h"
#include "worker/inventory.h"
#include "worker/membership.h"
#include "worker/nvml.h"
#include "worker/own_address.h"
#include "worker/trainer_process.h"
#include "worker/worker.h"

namespace offshoot::worker {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitWrongUse = 2;

struct Flags {
  std::string coordinator = "127.0.0.1:7070";
  std::string state_directory;
  std::string name;
  std::string devices;
  std::string trainer;
  std::string log_level = "info";
  std::map<std::string, std::string> labels;
  ChannelSecurity security;
  std::string token_file;
  std::string join_token_file;
  WorkerOptions options;
};

std::string DefaultStateDirectory() {
  const char* home = std::getenv("HOME");
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state != '\0') return absl::StrCat(state, "/offshoot/worker");
  if (home != nullptr && *home != '\0') return absl::StrCat(home, "/.local/state/offshoot/worker");
  return "/var/lib/offshoot/worker";
}

void Declare(Settings& settings, Flags& flags) {
  constexpr std::int64_t kTebibyte = std::int64_t{1} << 40;
  WorkerOptions& options = flags.options;
  settings.AddText("coordinator", &flags.coordinator, "Address of the coordinator, host:port.");
  settings.AddText("state_dir", &flags.state_directory,
                   "Directory for cache, attempts under way and the worker's identity.");
  settings.AddText("name", &flags.name, "Name shown to people; empty: the host's name.");
  settings.AddText("address", &options.address,
                   "Where ranks on other workers reach this one's: an IP address or a host name; "
                   "empty: the address it reaches the coordinator from; none: not at all.");
  settings.AddText("devices", &flags.devices,
                   "Devices to offer, for example cpu:0@4,cuda:0 (threads after the @); empty: all "
                   "GPUs, or one CPU device with all cores.");
  settings.AddText("trainer", &flags.trainer,
                   "Path of offshoot-trainer; empty: beside this program.");
  settings.AddText("ca_file", &flags.security.ca_file,
                   "PEM file of the CA of the coordinator's certificate; empty: no TLS.");
  settings.AddText("certificate_file", &flags.security.certificate_file,
                   "PEM file of this worker's certificate; empty: it has a token.");
  settings.AddText("key_file", &flags.security.key_file, "PEM file of its private key.");
  settings.AddText("token_file", &flags.token_file,
                   "File with the token of a user of role worker; empty: none.");
  settings.AddText("join_token_file", &flags.join_token_file,
                   "File with a one-time token to join with (offshoot workers invite): the worker "
                   "gets a certificate for it and renews that; not read once it has one. Empty: "
                   "none.");
  settings.AddLabels("labels", &flags.labels, "Labels that jobs may ask for.");
  settings.AddLabels("taints", &options.taints,
                     "Labels that keep away every job that does not ask for them in "
                     "resources.labels.");
  settings.AddChoice("log_level", &flags.log_level, {"debug", "info", "warning", "error"},
                     "Least important log lines to write.");
  settings.AddBytes("cache_max_bytes", &options.cache_max_bytes, 1 << 20, 1024 * kTebibyte,
                    "Most that fetched base models, data and checkpoints may take.");
  settings.AddBytes("tokenised_max_bytes", &options.tokenised_max_bytes, 0, 1024 * kTebibyte,
                    "Most that tokenised data, kept for the next attempt, may take.");
  settings.AddMilliseconds("unreachable_grace_ms", &options.unreachable_grace, absl::Seconds(1),
                           absl::Hours(24 * 30),
                           "How long attempts train on without a coordinator, until the "
                           "coordinator has said its own figure.");
  settings.AddMilliseconds("leave_timeout_ms", &options.leave_timeout, absl::Seconds(1),
                           absl::Hours(24),
                           "How long a stopping worker waits for checkpoints to be delivered.");
  settings.AddMilliseconds("stop_timeout_ms", &options.stop_timeout, absl::Seconds(1),
                           absl::Hours(24), "How long a trainer may take to checkpoint and stop.");
  settings.AddMilliseconds("progress_timeout_ms", &options.progress_timeout, absl::Seconds(2),
                           absl::Hours(24),
                           "A rank that gets on with nothing for so long while it trains has hung: "
                           "the attempt ends and names it.");
  settings.AddMilliseconds("start_timeout_ms", &options.start_timeout, absl::Seconds(2),
                           absl::Hours(24),
                           "A rank that has not begun to train so long after its process was "
                           "started, its base model loaded, has hung.");
  options.calibrate_after = absl::Seconds(10);
  settings.AddMilliseconds(
      "calibrate_after_ms", &options.calibrate_after, absl::ZeroDuration(), absl::Hours(24 * 365),
      "Devices that have not been measured are, once, for about a second each, "
      "when nothing has run for so long; given up when work comes.");
  settings.AddMilliseconds("preflight_timeout_ms", &options.preflight_timeout, absl::Seconds(2),
                           absl::Hours(24),
                           "A check of base model and data that takes longer has hung and is tried "
                           "again, elsewhere where it can be.");
}

// Flags win over the file, so the file is read first.
absl::Status ReadConfigFile(int argc, char** argv, Settings& settings) {
  for (int index = 1; index < argc; ++index) {
    const std::string word = argv[index];
    if (word == "--config" && index + 1 < argc) return settings.ReadFrom(argv[index + 1]);
    if (word.rfind("--config=", 0) == 0) return settings.ReadFrom(word.substr(9));
  }
  return absl::OkStatus();
}

absl::Status AddLabel(const std::string& text, std::map<std::string, std::string>& labels) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('=', 1));
  if (parts.first.empty() || text.find('=') == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("--labels: \"", text, "\" is no label; write key=value"));
  }
  labels[parts.first] = parts.second;
  return absl::OkStatus();
}

absl::Status Complete(Flags& flags) {
  if (flags.name.empty()) {
    char hostname[256] = {};
    gethostname(hostname, sizeof(hostname) - 1);
    flags.name = hostname;
  }
  if (flags.state_directory.empty()) flags.state_directory = DefaultStateDirectory();
  if (flags.trainer.empty()) flags.trainer = JoinPath(ProgramDirectory(), "offshoot-trainer");
  if (access(flags.trainer.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("no trainer program at ", flags.trainer, "; name one with --trainer PATH"));
  }
  if (flags.options.address.empty()) {
    flags.options.address = OwnAddressTowards(flags.coordinator);
  } else if (flags.options.address == "none") {
    flags.options.address.clear();
  }
  const CpuFacts cpu = ReadCpuFacts();
  const std::vector<GpuFacts> gpus = ListGpus();
  ASSIGN_OR_RETURN(const std::vector<DeviceChoice> devices,
                   ParseDevices(flags.devices, {cpu.cores, static_cast<int>(gpus.size())}));
  flags.options.state_directory = flags.state_directory;
  flags.options.name = flags.name;
  flags.options.trainer_program = flags.trainer;
  flags.options.labels = flags.labels;
  flags.options.hub = ReadHubEnvironment();
  if (flags.options.hub.cache.empty()) {  // a service without a home
    flags.options.hub.cache = JoinPath(flags.state_directory, "huggingface/hub");
  }
  flags.options.inventory = MakeInventory(cpu, UsableMemoryBytes(), gpus, devices);
  return absl::OkStatus();
}

// Tells the worker to leave at the first SIGTERM or SIGINT, and ends the program at the second.
class SignalWatch {
 public:
  // Before any thread is started: they inherit the mask.
  SignalWatch() : stop_(eventfd(0, EFD_CLOEXEC)) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    signals_.Reset(signalfd(-1, &set, SFD_CLOEXEC));
  }

  ~SignalWatch() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t wrote = write(stop_.get(), &one, sizeof(one));
    if (thread_.joinable()) thread_.join();
  }

  // Whether a signal has come that nobody has taken yet.
  bool Pending() const {
    pollfd descriptor{signals_.get(), POLLIN, 0};
    return poll(&descriptor, 1, 0) > 0;
  }

  void Watch(Worker& worker) {
    thread_ = std::thread([this, &worker] {
      bool leaving = false;
      while (true) {
        pollfd descriptors[] = {{signals_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
        if (poll(descriptors, 2, -1) < 0) continue;
        if (descriptors[1].revents != 0) return;
        signalfd_siginfo info;
        if (read(signals_.get(), &info, sizeof(info)) != sizeof(info)) continue;
        // The kernel ends the trainers with us; what they left is delivered at the next start.
        if (leaving) _exit(128 + static_cast<int>(info.ssi_signo));
        leaving = true;
        worker.Leave();
      }
    });
  }

 private:
  Descriptor signals_;
  const Descriptor stop_;
  std::thread thread_;
};

// Who has joined by a token, or is to.
absl::StatusOr<std::unique_ptr<Membership>> JoinIfNeeded(const Flags& flags,
                                                         const SignalWatch& signals) {
  const std::string directory = JoinPath(flags.state_directory, "identity");
  const bool has_other_proof =
      !flags.token_file.empty() || !flags.security.certificate_file.empty();
  if (flags.join_token_file.empty() && (has_other_proof || flags.security.ca_file.empty() ||
                                        !Membership::HasCertificate(directory))) {
    return nullptr;
  }
  if (has_other_proof) {
    return absl::InvalidArgumentError(
        "join_token_file goes with neither token_file nor certificate_file; give one of them");
  }
  MembershipOptions options;
  options.coordinator = flags.coordinator;
  options.ca_file = flags.security.ca_file;
  options.directory = directory;
  if (!flags.join_token_file.empty()) {
    // A token that was used and removed is no loss while there is a certificate.
    const absl::StatusOr<std::string> token = ReadFile(flags.join_token_file);
    if (!token.ok() && !Membership::HasCertificate(directory)) return token.status();
    if (token.ok()) options.join_token = std::string(absl::StripAsciiWhitespace(*token));
  }
  RETURN_IF_ERROR(MakeDirectories(flags.state_directory));
  ASSIGN_OR_RETURN(options.worker_id,
                   ReadOrMakeWorkerId(JoinPath(flags.state_directory, "worker_id")));
  return Membership::Establish(std::move(options), [&signals] { return signals.Pending(); });
}

int Fail(int code, const absl::Status& status) {
  std::fprintf(stderr, "offshoot-worker: %s\n", std::string(status.message()).c_str());
  return code;
}

int Main(int argc, char** argv) {
  Flags flags;
  Settings settings;
  Declare(settings, flags);
  if (const absl::Status status = ReadConfigFile(argc, argv, settings); !status.ok()) {
    return Fail(kExitWrongUse, status);
  }
  CLI::App app("Offers this machine's devices to an Offshoot coordinator.", "offshoot-worker");
  std::string config;
  std::vector<std::string> labels;
  bool print_settings = false;
  app.add_option("--coordinator", flags.coordinator, "address of the coordinator, host:port")
      ->capture_default_str();
  app.add_option("--state-dir", flags.state_directory, "directory for cache and state");
  app.add_option("--name", flags.name, "name shown to people (default: the host's name)");
  app.add_option("--address", flags.options.address,
                 "where ranks on other workers reach this one's");
  app.add_option("--devices", flags.devices, "for example cpu:0@4,cuda:0 (threads after the @)");
  app.add_option("--trainer", flags.trainer, "offshoot-trainer (default: beside this program)");
  app.add_option("--labels", labels, "key=value, may be repeated")->delimiter(',');
  app.add_option("--join-token-file", flags.join_token_file,
                 "file with a one-time token to join with (offshoot workers invite)");
  app.add_option("--ca", flags.security.ca_file,
                 "PEM file of the CA of the coordinator's certificate: TLS");
  app.add_option("--config", config, "YAML file of settings; flags win over it");
  app.add_option("--log-level", flags.log_level, "debug, info, warning or error");
  app.add_flag("--print-settings", print_settings, "print every setting as YAML and end");
  app.set_version_flag("--version", OFFSHOOT_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitWrongUse;
  }
  for (const std::string& label : labels) {
    if (const absl::Status status = AddLabel(label, flags.labels); !status.ok()) {
      return Fail(kExitWrongUse, status);
    }
  }
  if (print_settings) {
    std::fputs(settings.Document().c_str(), stdout);
    return kExitOk;
  }
  if (const absl::Status status = SetUpLog("worker", flags.log_level); !status.ok()) {
    return Fail(kExitWrongUse, status);
  }
  if (const absl::Status status = Complete(flags); !status.ok()) {
    return Fail(kExitWrongUse, status);
  }
  SignalWatch signals;
  ProcessSpawner spawner;
  RealTrainerLauncher launcher(spawner);
  if (!flags.token_file.empty()) {
    const absl::StatusOr<std::string> token = ReadFile(flags.token_file);
    if (!token.ok()) return Fail(kExitWrongUse, token.status());
    flags.security.token = std::string(absl::StripAsciiWhitespace(*token));
  }
  const absl::StatusOr<std::unique_ptr<Membership>> membership = JoinIfNeeded(flags, signals);
  if (!membership.ok()) return Fail(kExitFailed, membership.status());
  if (*membership != nullptr) flags.security = (*membership)->security();
  const auto credentials = MakeCredentials(flags.security);
  if (!credentials.ok()) return Fail(kExitWrongUse, credentials.status());
  const CoordinatorChannels channels = MakeCoordinatorChannels(flags.coordinator, *credentials);
  absl::StatusOr<std::unique_ptr<Worker>> worker =
      Worker::Create(std::move(flags.options), channels, launcher);
  if (!worker.ok()) return Fail(kExitFailed, worker.status());
  if (*membership != nullptr) (*membership)->KeepRenewed(channels.session);
  spdlog::info("{} offers {} to {}", flags.name,
               flags.devices.empty() ? "all devices" : flags.devices, flags.coordinator);
  signals.Watch(**worker);
  const absl::Status left = (*worker)->Run();
  if (!left.ok()) {
    return Fail(kExitFailed,
                absl::Status(left.code(), absl::StrCat("the coordinator at ", flags.coordinator,
                                                       " refused this worker: ", left.message())));
  }
  return kExitOk;
}

}  // namespace
}  // namespace offshoot::worker

int main(int argc, char** argv) { return offshoot::worker::Main(argc, argv); }
