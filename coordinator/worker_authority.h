// Lets workers in: one-time tokens made by administrators, short-lived certificates signed by the
// cluster's CA, and an end to both.
//
//   invited (token, its digest on disk) --Join--> certificate --Renew--> certificate ...
//              ^--- Join with the same key, no token --- ended ---/   \--Expel--> nothing is taken
//
// What must outlive a restart is in one file, written before an answer is given: tokens by digest
// with their end and whose they became, workers with their key's digest and their certificate's
// end. Bounded: kMaxInvitations open tokens, kMaxMembers workers. Thread-safe; what writes the file
// blocks on the disk.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/certificates.h"
#include "common/clock.h"

namespace offshoot {

struct Invitation {
  std::string token;
  absl::Time expires;
};

struct IssuedCertificate {
  std::string certificate_pem;
  absl::Time expires;
};

class WorkerAuthority {
 public:
  static constexpr std::size_t kMaxInvitations = 10'000;
  static constexpr std::size_t kMaxMembers = 100'000;

  // clock outlives the authority. INVALID_ARGUMENT: the key is not that of the CA's certificate.
  // DATA_LOSS naming the file: it was changed by somebody else.
  static absl::StatusOr<std::unique_ptr<WorkerAuthority>> Open(const std::string& file,
                                                               KeyAndCertificate authority,
                                                               absl::Duration certificate_lifetime,
                                                               const Clock& clock);

  // valid: zero means an hour. INVALID_ARGUMENT: longer than 30 days. RESOURCE_EXHAUSTED: too many.
  absl::StatusOr<Invitation> Invite(absl::Duration valid);
  // UNAUTHENTICATED: the token is not known, has expired, or another worker or key used it.
  // ALREADY_EXISTS: the worker joined before with another key. PERMISSION_DENIED: it was expelled.
  // Without a token, a member comes back whose certificate ended at most 30 days ago: the request,
  // which its key signs, says who it is.
  absl::StatusOr<IssuedCertificate> Join(const std::string& token, const std::string& worker_id,
                                         const std::string& request_pem);
  // For who has a certificate of this worker. PERMISSION_DENIED: it was expelled.
  absl::StatusOr<IssuedCertificate> Renew(const std::string& worker_id,
                                          const std::string& request_pem);
  // Idempotent. NOT_FOUND: no such worker joined by a token.
  absl::Status Expel(const std::string& worker_id);
  // PERMISSION_DENIED with the remedy when the worker was expelled; UNAUTHENTICATED when none of
  // its certificates is valid any longer.
  absl::Status Check(const std::string& worker_id) const;

 private:
  struct Ticket {
    absl::Time expires;
    std::string worker_id;  // empty: not used yet
    std::string key_digest;
  };
  struct Member {
    std::string key_digest;
    absl::Time valid_until;  // of the newest certificate
    bool expelled = false;
  };

  WorkerAuthority(std::string file, KeyAndCertificate authority, absl::Duration lifetime,
                  const Clock& clock)
      : file_(std::move(file)),
        authority_(std::move(authority)),
        lifetime_(lifetime),
        clock_(clock) {}
  absl::Status Load() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Save() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<IssuedCertificate> Return(const std::string& worker_id,
                                           const std::string& request_pem,
                                           const std::string& key_digest)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<IssuedCertificate> Issue(const std::string& worker_id,
                                          const std::string& request_pem,
                                          const std::string& key_digest)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string file_;
  const KeyAndCertificate authority_;
  const absl::Duration lifetime_;
  const Clock& clock_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Ticket> tickets_ ABSL_GUARDED_BY(mutex_);  // by the token's digest
  std::map<std::string, Member> members_ ABSL_GUARDED_BY(mutex_);  // by the worker's id
};

// Ids of workers that certificates bind to: "wrk-" and at most 60 letters, digits and '-'. Pure.
bool IsBindableWorkerId(const std::string& text);

}  // namespace offshoot
