// Base models with names: brought from a hub into this machine's Hugging Face cache, once for all
// attempts and workers of the machine. Thread-safe; Fetch blocks.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "hub/download.h"
#include "hub/environment.h"
#include "offshoot/v1/cluster.pb.h"
#include "worker/cancel_token.h"
#include "worker/digest_cache.h"

namespace offshoot::worker {

class HubModels {
 public:
  // What is going on, for people: "fetching org/name: 1.2 of 3.1 GB".
  using Report = std::function<void(const std::string& stage)>;

  // digests outlives this object.
  HubModels(const HubEnvironment& environment, DigestCache& digests,
            const HubDownloadOptions& options = {})
      : environment_(environment), downloader_(environment, options), digests_(digests) {}

  // Where the files of a hub's input lie in the cache, each with the digest that the coordinator
  // named. Errors: the hub's sentences; DATA_LOSS: the hub has other bytes than the coordinator
  // was told of; CANCELLED.
  absl::StatusOr<std::string> Fetch(const v1::Input& input, CancelToken& token,
                                    const Report& report);

 private:
  bool IsThere(const v1::Input& input, const std::string& snapshot, CancelToken& token);

  const HubEnvironment environment_;
  const HubDownloader downloader_;
  DigestCache& digests_;
};

}  // namespace offshoot::worker
