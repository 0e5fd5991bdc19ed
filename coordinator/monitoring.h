// The metrics page: /metrics in Prometheus' text form and /healthz, over plain HTTP. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/controller.h"
#include "coordinator/service/context.h"

namespace offshoot {

// What the page says at this moment.
std::string RenderMetrics(const ControllerCounters& controller, const RpcCounters& calls);

class MetricsServer {
 public:
  // address: host:port, port 0 for any. FAILED_PRECONDITION naming the address when it is taken.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address,
                                                              const ControllerCounters& controller,
                                                              const RpcCounters& calls);
  ~MetricsServer();
  int port() const;

 private:
  class Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace offshoot
