// Brings files of a model into the Hugging Face cache: several at a time, each going on where it
// stopped, each checked against its digest before it appears under its name. Programs that share
// the cache fetch a file once (a lock per file; huggingface_hub takes the same locks).
// Thread-safe; Fetch blocks.
//
// An unfinished download is BLOB.offshoot.incomplete beside its blob. huggingface_hub does not
// look at those, and removes its own.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "hub/cache.h"
#include "hub/client.h"
#include "hub/environment.h"

namespace offshoot {

struct HubDownloadOptions {
  int files_at_once = 8;
  int tries_without_progress = 5;
  absl::Duration first_wait = absl::Milliseconds(500);
  absl::Duration longest_wait = absl::Seconds(30);
  std::int64_t disk_reserve_bytes = 64 << 20;  // left free
  HttpLimits limits;
};

// Called from the threads of the download; must not block.
struct HubDownloadHooks {
  std::function<bool()> cancelled;
  // Bytes that are there of all that was asked for; a few times a second.
  std::function<void(std::int64_t done_bytes, std::int64_t total_bytes)> progress;
  // A remembered digest ("sha256:...") of a file that is there; not set: it is computed.
  std::function<absl::StatusOr<std::string>(const std::string& path)> digest_of;
  // A file that was fetched, with the digest it turned out to have.
  std::function<void(const std::string& path, const std::string& digest)> fetched;
};

class HubDownloader {
 public:
  explicit HubDownloader(const HubEnvironment& environment, const HubDownloadOptions& options = {})
      : environment_(environment), options_(options), cache_(environment.cache) {}

  const HubCache& cache() const { return cache_; }

  // All of snapshot.files lie in the snapshot's directory afterwards, and the revision, if one is
  // given, is remembered. Errors: HubClient's; DATA_LOSS: what came has another digest;
  // RESOURCE_EXHAUSTED: the disk; CANCELLED.
  absl::Status Fetch(const HubSnapshot& snapshot, const std::string& revision,
                     const HubDownloadHooks& hooks) const;

 private:
  class Job;
  const HubEnvironment environment_;
  const HubDownloadOptions options_;
  const HubCache cache_;
};

}  // namespace offshoot
