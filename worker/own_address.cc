#include "worker/own_address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include "worker/descriptor.h"

namespace offshoot::worker {

std::string OwnAddressTowards(const std::string& coordinator) {
  const std::size_t colon = coordinator.rfind(':');
  if (colon == std::string::npos) return "";
  std::string host = coordinator.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_DGRAM;  // connecting it sends nothing
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), coordinator.c_str() + colon + 1, &hints, &found) != 0) return "";
  std::string own;
  for (const addrinfo* one = found; one != nullptr && own.empty(); one = one->ai_next) {
    const Descriptor probe(socket(one->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage address{};
    socklen_t length = sizeof(address);
    char text[NI_MAXHOST] = {};
    if (probe.valid() && connect(probe.get(), one->ai_addr, one->ai_addrlen) == 0 &&
        getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&address), length, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) == 0) {
      own = text;
    }
  }
  freeaddrinfo(found);
  return own;
}

}  // namespace offshoot::worker
