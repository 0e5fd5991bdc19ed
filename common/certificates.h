// X.509 certificates of a cluster's own CA, by the OpenSSL library: the CA, the coordinator's
// server certificate, and the short-lived certificates of workers. Keys are ECDSA P-256; everything
// is PEM. Pure but for the random numbers; thread-safe. Errors: INVALID_ARGUMENT for what came from
// outside and is no such thing; INTERNAL for what OpenSSL refuses.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace offshoot {

// Certificates are valid from so long before they are made, for clocks that are behind.
inline constexpr absl::Duration kCertificateBackdate = absl::Minutes(5);

struct KeyAndCertificate {
  std::string key_pem;
  std::string certificate_pem;
};

struct CertificateFacts {
  std::string common_name;
  absl::Time valid_from;  // backdated
  absl::Time valid_until;
};

absl::StatusOr<std::string> MakePrivateKey();

// A CA that signs certificates of servers and workers, not further CAs.
absl::StatusOr<KeyAndCertificate> MakeAuthority(const std::string& name, absl::Time now,
                                                absl::Duration lifetime);

// For servers only: nobody can pass for a worker with it. hosts: DNS names and IP addresses by
// which clients reach the server; at least one.
absl::StatusOr<KeyAndCertificate> MakeServerCertificate(const KeyAndCertificate& authority,
                                                        const std::vector<std::string>& hosts,
                                                        absl::Time now, absl::Duration lifetime);

// A request (CSR) for a certificate of this key, signed with it.
absl::StatusOr<std::string> MakeCertificateRequest(const std::string& key_pem,
                                                   const std::string& name);
// The digest of the key that a request is for; INVALID_ARGUMENT unless it is signed with that key.
absl::StatusOr<std::string> KeyDigestOfRequest(const std::string& request_pem);
// For clients only, in the name that is given: of the request only the key counts.
absl::StatusOr<std::string> SignWorkerCertificate(const KeyAndCertificate& authority,
                                                  const std::string& request_pem,
                                                  const std::string& worker_id, absl::Time now,
                                                  absl::Duration lifetime);

absl::StatusOr<CertificateFacts> ReadCertificate(const std::string& certificate_pem);
// INVALID_ARGUMENT unless the key is the certificate's.
absl::Status CheckKeyPair(const KeyAndCertificate& pair);

}  // namespace offshoot
