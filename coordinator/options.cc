#include "coordinator/options.h"

#include <utility>

#include "common/files.h"
#include "common/settings.h"
#include "common/status_macros.h"
#include "coordinator/scheduling_settings.h"

namespace offshoot {
namespace {

// Numbers that the settings file has in another type.
struct Numbers {
  std::int64_t retry_budget = 3;
  std::int64_t max_queue = 20'000;
  std::string metrics_listen = {};
  SchedulingSettings scheduling = {};
};

void Declare(Settings& settings, ProgramOptions& options, Numbers& numbers) {
  ServerOptions& server = options.server;
  ControllerOptions& controller = server.controller;
  settings.AddText("listen", &server.listen, "HOST:PORT to serve on; port 0 takes any.");
  settings.AddText("state_dir", &server.state_dir, "Directory for jobs, artifacts and logs.");
  settings.AddText("http_listen", &server.http_listen,
                   "HOST:PORT of the HTTP port: /metrics for Prometheus, /healthz, and base models"
                   " and derivatives as a hub (HF_ENDPOINT); empty for none.");
  settings.AddText("metrics_listen", &numbers.metrics_listen, "The older name of http_listen.");
  settings.AddTextList("allowed_roots", &server.allowed_roots,
                       "Directories that jobs may name files of, besides state_dir.");
  settings.AddText(
      "hub_cache", &server.hub_cache,
      "Hugging Face's cache of models, for base_model: org/name[@revision]; empty for"
      " HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub. HF_ENDPOINT, HF_TOKEN and"
      " HF_HUB_OFFLINE are honoured too.");
  settings.AddTextList("push_namespaces", &server.push_namespaces,
                       "Organisations or users of the hub that jobs may push to with this"
                       " coordinator's HF_TOKEN; `*` for any. Empty: any when it listens on a"
                       " loopback address, else none.");
  settings.AddText("tls_certificate", &server.tls_certificate,
                   "PEM file of the certificate to serve with; empty for no TLS.");
  settings.AddText("tls_key", &server.tls_key, "PEM file of its private key.");
  settings.AddText("tls_client_ca", &server.tls_client_ca,
                   "PEM file of the CA that signs workers' certificates; who has one is a worker."
                   " Empty: workers have tokens.");
  settings.AddText("tls_client_ca_key", &server.tls_client_ca_key,
                   "PEM file of that CA's key: workers then join with one-time tokens (offshoot"
                   " workers invite) and get certificates. Empty: certificates come from you.");
  settings.AddMilliseconds("worker_certificate_ms", &server.worker_certificate_lifetime,
                           absl::Seconds(5), absl::Hours(24 * 365),
                           "How long such a certificate is good for; workers renew it when a third"
                           " of that is left.");
  settings.AddText(
      "users_file", &server.users_file,
      "File with users, their teams, roles and tokens (docs/identity.md); empty: nobody"
      " is asked.");
  settings.AddTruth("insecure", &server.insecure,
                    "Allow an address that is not loopback although there is no TLS.");
  settings.AddChoice("log_level", &options.log_level, {"debug", "info", "warning", "error"},
                     "How much is written to stderr.");
  settings.AddMilliseconds("lease_ms", &controller.lease, absl::Seconds(1), absl::Hours(1),
                           "A worker not heard of for so long has lost its attempts.");
  settings.AddMilliseconds("heartbeat_interval_ms", &controller.heartbeat_interval,
                           absl::Milliseconds(100), absl::Minutes(10),
                           "How often workers report; well below lease_ms.");
  settings.AddMilliseconds("unreachable_grace_ms", &controller.unreachable_grace,
                           absl::ZeroDuration(), absl::Hours(24),
                           "How long a worker trains on when it cannot reach the coordinator.");
  settings.AddInteger("retry_budget", &numbers.retry_budget, 0, 100, "attempts",
                      "Failed attempts in a row, without a new checkpoint, that are tried again.");
  settings.AddMilliseconds("first_backoff_ms", &controller.lifecycle.first_backoff,
                           absl::Milliseconds(1), absl::Hours(1),
                           "Wait after the first failed attempt; doubles with each further one.");
  settings.AddMilliseconds("longest_backoff_ms", &controller.lifecycle.longest_backoff,
                           absl::Milliseconds(1), absl::Hours(24), "Longest such wait.");
  DeclareScheduling(settings, numbers.scheduling);
  settings.AddMilliseconds("artifact_grace_ms", &controller.artifact_grace, absl::Minutes(10),
                           absl::Hours(24 * 365),
                           "Artifacts that nothing refers to are kept for so long.");
  settings.AddMilliseconds("output_retention_ms", &controller.output_retention, absl::Hours(1),
                           absl::Hours(24 * 3650), "Logs and metrics are kept for so long.");
  settings.AddInteger("max_queue", &numbers.max_queue, 16, 1'000'000, "requests",
                      "Requests that may wait for the coordinator's loop.");
  settings.AddInteger("io_threads", &server.io_threads, 1, 256, "threads",
                      "Threads for uploads, downloads and watchers.");
  settings.AddBytes("log_bytes_per_attempt", &server.outputs.log_bytes, 1 << 16,
                    std::int64_t{1} << 40, "Bound of an attempt's log.");
  settings.AddBytes("metrics_bytes_per_attempt", &server.outputs.metrics_bytes, 1 << 16,
                    std::int64_t{1} << 40, "Bound of an attempt's metrics.");
}

}  // namespace

absl::Status Combine(const CommandLine& command_line, ProgramOptions* options) {
  Numbers numbers;
  ServerOptions& server = options->server;
  if (!command_line.config.empty()) {
    Settings settings;
    Declare(settings, *options, numbers);
    RETURN_IF_ERROR(settings.ReadFrom(command_line.config));
    server.controller.lifecycle.retry_budget = static_cast<int>(numbers.retry_budget);
    server.controller.max_queue = static_cast<std::size_t>(numbers.max_queue);
    server.controller.scheduling = PolicyOf(numbers.scheduling);
  }
  if (!command_line.listen.empty()) server.listen = command_line.listen;
  if (!command_line.state_dir.empty()) server.state_dir = command_line.state_dir;
  if (server.http_listen.empty()) server.http_listen = numbers.metrics_listen;
  if (!command_line.http_listen.empty()) server.http_listen = command_line.http_listen;
  if (!command_line.log_level.empty()) options->log_level = command_line.log_level;
  for (const std::string& root : command_line.allowed_roots) server.allowed_roots.push_back(root);
  server.hub = ReadHubEnvironment();
  if (server.hub_cache.empty()) server.hub_cache = server.hub->cache;
  if (server.hub_cache.empty() && !server.state_dir.empty()) {  // a service without a home
    server.hub_cache = JoinPath(server.state_dir, "huggingface/hub");
  }
  server.hub->cache = server.hub_cache;
  server.insecure = server.insecure || command_line.insecure;
  options->address_file = command_line.address_file;
  options->http_address_file = command_line.http_address_file;
  if (server.controller.heartbeat_interval * 2 > server.controller.lease) {
    return absl::InvalidArgumentError(
        "heartbeat_interval_ms must be at most half of lease_ms, or one lost heartbeat ends "
        "leases");
  }
  return absl::OkStatus();
}

std::string DocumentSettings() {
  ProgramOptions options;
  Numbers numbers;
  Settings settings;
  Declare(settings, options, numbers);
  return settings.Document();
}

}  // namespace offshoot
