#include "common/channel_security.h"

#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot {

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const ChannelSecurity& security) {
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
  if (!security.certificate_file.empty()) {
    ASSIGN_OR_RETURN(options.pem_cert_chain, ReadFile(security.certificate_file));
    ASSIGN_OR_RETURN(options.pem_private_key, ReadFile(security.key_file));
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::SslCredentials(options);
  if (!security.token.empty()) {
    credentials = grpc::CompositeChannelCredentials(credentials,
                                                    grpc::AccessTokenCredentials(security.token));
  }
  return credentials;
}

}  // namespace offshoot
