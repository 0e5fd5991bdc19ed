// Fetches and stores files by digest through the coordinator.
//
// Both ways go on where they broke off, retry passing trouble with backoff until it passes or the
// token is cancelled, and believe nothing but the digest. Blocking; thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/retry.h"
#include "offshoot/v1/cluster.grpc.pb.h"
#include "worker/attempt_machine.h"
#include "worker/cancel_token.h"

namespace offshoot::worker {

struct ArtifactClientOptions {
  BackoffOptions backoff{.first = absl::Milliseconds(50), .largest = absl::Seconds(5)};
  // Trouble that is neither a lost connection nor a clear refusal is tried this often.
  int max_odd_failures = 5;
  // An RPC that moves fewer than these bytes a second for a minute is given up and begun again.
  std::int64_t slowest_bytes_per_second = 64 << 10;
};

class ArtifactClient {
 public:
  explicit ArtifactClient(std::shared_ptr<grpc::Channel> channel,
                          ArtifactClientOptions options = {});

  // Puts the file at destination (by way of destination + ".partial", which is gone on from).
  // NOT_FOUND: nobody has it. DATA_LOSS: what came has another digest. RESOURCE_EXHAUSTED: the
  // disk is full. CANCELLED: the token.
  absl::Status Download(const v1::File& file, const std::string& destination, CancelToken& token);

  // ABORTED: the coordinator says, again and again, that the attempt is not its current one.
  // RESOURCE_EXHAUSTED: its disk is full.
  absl::Status Upload(const v1::File& file, const std::string& source, const AttemptKey& key,
                      CancelToken& token);

 private:
  absl::Status FetchFromLocations(const v1::File& file, const std::string& partial,
                                  CancelToken& token);
  absl::Status FetchFromCoordinator(const v1::File& file, const std::string& partial,
                                    CancelToken& token);
  absl::Status UploadOnce(const v1::File& file, const std::string& source, const AttemptKey& key,
                          CancelToken& token);
  // Calls attempt until it succeeds or fails for good.
  absl::Status Retry(CancelToken& token, const std::function<absl::Status()>& attempt);
  void SetDeadline(grpc::ClientContext& context, std::int64_t bytes) const;

  const ArtifactClientOptions options_;
  const std::unique_ptr<v1::Cluster::Stub> stub_;
};

}  // namespace offshoot::worker
