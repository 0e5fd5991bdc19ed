#include "common/channel_security.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <cstdlib>

#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

constexpr unsigned kLookEverySeconds = 1;

// While no call waits on a channel, gRPC looks at its connection attempts every 5 s only, and an
// attempt that is to be done within 2 s then always fails. Read by gRPC when it starts; what the
// user has set stays.
void LookOftenAtConnectionAttempts() {
  setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "100", /*overwrite=*/0);
}

// A certificate that is renewed on disk counts from the next connection on.
std::shared_ptr<grpc::ChannelCredentials> WatchedCredentials(const ChannelSecurity& security) {
  namespace tls = grpc::experimental;
  tls::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(std::make_shared<tls::FileWatcherCertificateProvider>(
      security.key_file, security.certificate_file, security.ca_file, kLookEverySeconds));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_certificate_verifier(std::make_shared<tls::HostNameCertificateVerifier>());
  return tls::TlsCredentials(options);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const ChannelSecurity& security) {
  LookOftenAtConnectionAttempts();
  if (security.ca_file.empty()) {
    if (!security.token.empty() || !security.certificate_file.empty()) {
      return absl::InvalidArgumentError(
          "a token or a certificate is only shown over TLS; name the coordinator's CA with --ca or"
          " OFFSHOOT_CA");
    }
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions options;
  ASSIGN_OR_RETURN(options.pem_root_certs, ReadFile(security.ca_file));
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  if (security.certificate_file.empty()) {
    credentials = grpc::SslCredentials(options);
  } else {
    RETURN_IF_ERROR(ReadFile(security.certificate_file).status());
    RETURN_IF_ERROR(ReadFile(security.key_file).status());
    credentials = WatchedCredentials(security);
  }
  if (!security.token.empty()) {
    credentials = grpc::CompositeChannelCredentials(credentials,
                                                    grpc::AccessTokenCredentials(security.token));
  }
  return credentials;
}

}  // namespace offshoot
