// The address by which this machine is reached from where the coordinator is. Thread-safe.
#pragma once

#include <string>

namespace offshoot::worker {

// coordinator: host:port. The address of the network interface whose packets would go there; ""
// when the host cannot be resolved. Sends nothing; looks the host's name up.
std::string OwnAddressTowards(const std::string& coordinator);

}  // namespace offshoot::worker
