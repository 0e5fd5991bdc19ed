// Uploads files as one commit to a model on a hub, with Hugging Face's commit and LFS calls. Run
// again after a break it goes on: large files that the hub has are not sent twice, and a commit
// that changes nothing is not made. Blocks; thread-safe for different objects.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hub/client.h"
#include "hub/environment.h"
#include "hub/http.h"

namespace offshoot {

struct HubPushFile {
  std::string path;        // in the repository
  std::string local_path;  // its bytes
  std::string digest;      // sha256:...
  std::int64_t size_bytes = 0;
};

struct HubPushRequest {
  std::string repository;  // org/name; made when it is not there
  bool make_private = true;
  std::string summary;  // of the commit
  std::vector<HubPushFile> files;
};

class HubPusher {
 public:
  explicit HubPusher(const HubEnvironment& environment, std::function<bool()> cancelled = nullptr,
                     const HttpLimits& limits = {});

  // The commit that holds the files. UNAVAILABLE: worth another try. PERMISSION_DENIED: the token
  // may not write there. FAILED_PRECONDITION: offline, no token, or the server says what no hub
  // says.
  absl::StatusOr<std::string> Push(const HubPushRequest& request);

 private:
  enum class Mode { kRegular, kLarge, kIgnored };

  absl::StatusOr<HttpResponse> Post(const std::string& url, const std::string& content_type,
                                    const std::string& body, const HubReference& reference,
                                    std::vector<int> also_fine = {});
  absl::Status MakeRepository(const HubPushRequest& request, const HubReference& reference);
  // What the hub has already, by path; empty for a repository without files.
  absl::StatusOr<bool> IsThere(const HubPushRequest& request, std::string* commit);
  absl::StatusOr<std::vector<Mode>> AskModes(const HubPushRequest& request,
                                             const HubReference& reference);
  absl::Status SendLarge(const std::vector<const HubPushFile*>& files,
                         const HubReference& reference);
  absl::Status SendObject(const HubPushFile& file, const std::string& action_json,
                          const HubReference& reference);
  absl::StatusOr<std::string> Put(const HubPushFile& file, const std::string& url,
                                  const std::vector<std::string>& headers, std::int64_t offset,
                                  std::int64_t size_bytes, const HubReference& reference);
  absl::StatusOr<std::string> Commit(const HubPushRequest& request, const std::vector<Mode>& modes,
                                     const HubReference& reference);

  const HubEnvironment environment_;
  const std::function<bool()> cancelled_;
  HttpClient http_;
};

}  // namespace offshoot
