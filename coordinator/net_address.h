// host:port as people write it. Pure, thread-safe.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace offshoot {

struct NetAddress {
  std::string host;  // without brackets
  int port = 0;
};

// "127.0.0.1:7070", "[::1]:0", "localhost:7070". INVALID_ARGUMENT naming what was given.
absl::StatusOr<NetAddress> ParseNetAddress(const std::string& text);
// With brackets where the host has colons.
std::string FormatNetAddress(const NetAddress& address);
bool IsLoopback(const NetAddress& address);
// Binds it for a moment. FAILED_PRECONDITION: one sentence why it cannot be listened on.
absl::Status CheckCanListen(const NetAddress& address);

}  // namespace offshoot
