// What a hub says of a model: the commit a revision stands for and the files of that commit. Speaks
// the read side of Hugging Face's protocol. Not thread-safe; calls block, each for a bounded time.
//
// Errors are sentences that name the model, the endpoint and the remedy:
//   NOT_FOUND            no such model, revision or file (or a private one)
//   PERMISSION_DENIED    gated, or the token is refused
//   UNAVAILABLE          no answer, too many requests, or the server's own failure: worth a retry
//   FAILED_PRECONDITION  offline, or the server says what no hub says
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hub/environment.h"
#include "hub/http.h"

namespace offshoot {

struct HubFile {
  std::string path;
  std::int64_t size_bytes = 0;
  std::string etag;    // name of its bytes: SHA-256 of a large file, git's SHA-1 of a small one
  std::string digest;  // sha256:..., or empty where only git's is known
};

struct HubSnapshot {
  std::string repository;
  std::string commit;
  std::vector<HubFile> files;
};

class HubClient {
 public:
  using Cancelled = std::function<bool()>;

  HubClient(const HubEnvironment& environment, Cancelled cancelled);

  // The commit that a revision stands for, and its files, all of them.
  absl::StatusOr<HubSnapshot> Describe(const HubReference& reference);

 private:
  absl::StatusOr<HttpResponse> Get(const std::string& url, const HubReference& reference);

  const HubEnvironment environment_;
  const Cancelled cancelled_;
  HttpClient http_;
};

// The sentence for an answer that is no success; `what` is what was asked for ("org/name",
// "org/name's model.safetensors").
absl::Status HubRefusal(const HubEnvironment& environment, const HttpResponse& response,
                        const HubReference& reference, absl::string_view what);
// How long the server asks to wait, 0 if it does not say.
absl::Duration RetryAfter(const HttpResponse& response);

// The files of a model that Offshoot reads, without the second copies that some models carry.
// FAILED_PRECONDITION: weights only as pickles, or several GGUF files.
absl::StatusOr<std::vector<HubFile>> SelectModelFiles(const HubSnapshot& snapshot);

}  // namespace offshoot
