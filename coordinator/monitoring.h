// The metrics page in Prometheus' text form. Pure; thread-safe.
#pragma once

#include <string>

#include "coordinator/controller.h"
#include "coordinator/service/context.h"

namespace offshoot {

inline constexpr const char* kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

// What the page says at this moment.
std::string RenderMetrics(const ControllerCounters& controller, const RpcCounters& calls);

}  // namespace offshoot
