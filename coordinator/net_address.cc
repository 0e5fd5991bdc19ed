#include "coordinator/net_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace offshoot {

absl::StatusOr<NetAddress> ParseNetAddress(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  NetAddress address;
  if (colon != std::string::npos && colon > 0 &&
      absl::SimpleAtoi(text.substr(colon + 1), &address.port) && address.port >= 0 &&
      address.port <= 65535) {
    address.host = text.substr(0, colon);
    if (address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']') {
      address.host = address.host.substr(1, address.host.size() - 2);
      return address;
    }
    if (!absl::StrContains(address.host, ":")) return address;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is no address; write HOST:PORT, for example 127.0.0.1:7070"));
}

std::string FormatNetAddress(const NetAddress& address) {
  return absl::StrContains(address.host, ":") ? absl::StrCat("[", address.host, "]:", address.port)
                                              : absl::StrCat(address.host, ":", address.port);
}

bool IsLoopback(const NetAddress& address) {
  return address.host == "localhost" || address.host == "::1" ||
         absl::StartsWith(address.host, "127.");
}

absl::Status CheckCanListen(const NetAddress& address) {
  const std::string text = FormatNetAddress(address);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code =
      getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (code != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", text, ": ", gai_strerror(code)));
  }
  const int descriptor = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const bool bound =
      bind(descriptor, found->ai_addr, found->ai_addrlen) == 0 && listen(descriptor, 1) == 0;
  const int error = errno;
  close(descriptor);
  freeaddrinfo(found);
  if (bound) return absl::OkStatus();
  if (error == EADDRINUSE) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", text,
                     ": another program does (a second coordinator?); choose another --listen"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("cannot listen on ", text, ": ", std::strerror(error)));
}

}  // namespace offshoot
