// A whole coordinator in one object: state directory, store, loop, services. Start answers with the
// sentence to show when it cannot; the destructor stops it cleanly, within two seconds.
//
//   STATE_DIR/lock                 held while a coordinator runs
//   STATE_DIR/coordinator.sqlite3  the store
//   STATE_DIR/artifacts/           files by digest
//   STATE_DIR/members.json         join tokens (digests) and workers that joined by one
//   STATE_DIR/outputs/             logs and metrics of attempts
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "coordinator/controller.h"
#include "coordinator/outputs.h"
#include "hub/environment.h"

namespace offshoot {

struct ServerOptions {
  std::string listen = "127.0.0.1:7070";  // port 0: any
  std::string state_dir;
  std::string http_listen;                 // empty: no HTTP port
  bool insecure = false;                   // allows an address that is not loopback
  std::vector<std::string> allowed_roots;  // besides state_dir
  std::string hub_cache;                   // Hugging Face's cache of models; empty: none
  std::optional<HubEnvironment> hub;  // where models with names come from; none: nobody is asked
  // Of the hub that jobs may push to with this coordinator's token; "*": any. Empty: any on a
  // loopback address, else none.
  std::vector<std::string> push_namespaces;
  std::string users_file;       // identity.h; empty: nobody is asked who it is
  std::string tls_certificate;  // PEM, with tls_key; empty: no TLS
  std::string tls_key;
  std::string
      tls_client_ca;  // PEM of the CA of the workers' certificates; empty: none is asked for
  std::string tls_client_ca_key;  // of that CA: workers join with tokens; empty: they do not
  absl::Duration worker_certificate_lifetime = absl::Hours(24);
  std::int64_t io_threads = 4;
  ControllerOptions controller;
  OutputLimits outputs;
};

class CoordinatorServer {
 public:
  // clock outlives the server.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(const ServerOptions& options,
                                                                  const Clock& clock);
  ~CoordinatorServer();
  // host:port with the port that was bound.
  const std::string& address() const;
  int http_port() const;  // 0: none
  // Tells the loop that the clock was moved (tests).
  void Wake();

 private:
  class Impl;
  explicit CoordinatorServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace offshoot
