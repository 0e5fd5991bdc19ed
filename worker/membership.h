// A worker's membership of a cluster that asks who it is: a key of its own that never leaves the
// state directory, and a certificate that the coordinator signs, first for a one-time token, then
// again and again for the certificate that ends soon, or for the key if it has ended.
//
//   DIRECTORY/worker.key   made once, mode 0600
//   DIRECTORY/worker.pem   the newest certificate; replaced whole
//
// Renewal has a thread of its own and touches nothing but that file: connections that are open
// stay, new ones show the new certificate. Thread-safe.
#pragma once

#include <grpcpp/channel.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/channel_security.h"

namespace offshoot::worker {

struct MembershipOptions {
  std::string coordinator;
  std::string ca_file;
  std::string directory;
  std::string worker_id;
  std::string join_token;  // empty: it has joined before
};

class Membership {
 public:
  // Joins unless there is a certificate that is still good; waits for a coordinator that is away
  // until `stopped` says so (CANCELLED). UNAUTHENTICATED and others: what the coordinator says of
  // the token. FAILED_PRECONDITION: neither a certificate nor a token.
  static absl::StatusOr<std::unique_ptr<Membership>> Establish(
      MembershipOptions options, const std::function<bool()>& stopped);
  ~Membership();

  // Whether the directory holds a certificate, good or not.
  static bool HasCertificate(const std::string& directory);
  ChannelSecurity security() const;
  // Starts the thread that renews the certificate over this channel. Once.
  void KeepRenewed(std::shared_ptr<grpc::Channel> channel);

 private:
  explicit Membership(MembershipOptions options);
  // Waits for a coordinator that is away. Without a token it comes back by its key.
  absl::Status Join(const std::string& token, const std::function<bool()>& stopped);
  absl::Status Renew(const std::shared_ptr<grpc::Channel>& channel);
  void RenewForEver(const std::shared_ptr<grpc::Channel>& channel);
  absl::StatusOr<std::string> MakeRequest() const;
  absl::Status Keep(const std::string& certificate_pem);

  const MembershipOptions options_;
  const std::string key_file_;
  const std::string certificate_file_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// The id that a worker has made once, in the file; made if it is not there.
absl::StatusOr<std::string> ReadOrMakeWorkerId(const std::string& path);

// When a certificate is to be renewed: when a third of its time is left. Pure.
absl::Time RenewalTime(absl::Time issued, absl::Time valid_until);

}  // namespace offshoot::worker
