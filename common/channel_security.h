// How a client proves who it is and knows the coordinator: TLS with a CA of our own, a certificate,
// a token. A certificate that is replaced on disk is shown from the next connection on. Without a CA
// the connection is in the clear and no token is ever sent. Thread-safe.
#pragma once

#include <grpcpp/security/credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace offshoot {

struct ChannelSecurity {
  std::string ca_file;           // PEM of the CA that signed the coordinator's certificate
  std::string certificate_file;  // ours, with key_file; empty: none
  std::string key_file;
  std::string token;
};

// INVALID_ARGUMENT when a token or certificate is given without a CA; else what reading a file
// says.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const ChannelSecurity& security);

}  // namespace offshoot
