#include "hub/client.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/model_files.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

using Json = nlohmann::json;

constexpr int kMaxPages = 64;
constexpr std::size_t kMaxFiles = 20'000;
constexpr int kTries = 4;
constexpr absl::Duration kFirstWait = absl::Milliseconds(250);
constexpr absl::Duration kLongestWait = absl::Seconds(20);
constexpr std::int64_t kMaxFileBytes = std::int64_t{1} << 46;

HttpLimits ApiLimits() {
  HttpLimits limits;
  limits.total = absl::Seconds(60);
  return limits;
}

std::string Text(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::int64_t Size(const Json& object) {
  const auto found = object.find("size");
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : -1;
}

bool IsHex(absl::string_view text, std::size_t digits) {
  return text.size() == digits && std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
         });
}

absl::Status Senseless(const HubEnvironment& environment, const HubReference& reference,
                       absl::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat(environment.endpoint, " says of ", reference.repository,
                   " what no hub says: ", what, "; check HF_ENDPOINT"));
}

// The next page's URL of a Link header.
std::string NextPage(const HttpResponse& response) {
  const std::string link = response.Header("link");
  for (absl::string_view part : absl::StrSplit(link, ',')) {
    if (!absl::StrContains(part, "rel=\"next\"")) continue;
    const std::size_t begin = part.find('<');
    const std::size_t end = part.find('>');
    if (begin != absl::string_view::npos && end != absl::string_view::npos && begin < end) {
      return std::string(part.substr(begin + 1, end - begin - 1));
    }
  }
  return "";
}

absl::Status AddFile(const Json& entry, const HubEnvironment& environment,
                     const HubReference& reference, HubSnapshot* snapshot) {
  if (!entry.is_object() || Text(entry, "type") != "file") return absl::OkStatus();
  HubFile file;
  file.path = Text(entry, "path");
  file.size_bytes = Size(entry);
  file.etag = Text(entry, "oid");
  if (const auto lfs = entry.find("lfs"); lfs != entry.end() && lfs->is_object()) {
    file.etag = Text(*lfs, "oid");
    file.size_bytes = Size(*lfs);
    file.digest = absl::StrCat("sha256:", file.etag);
    if (!IsHex(file.etag, 64)) {
      return Senseless(environment, reference,
                       absl::StrCat("the digest of ", file.path, " is \"", file.etag, "\""));
    }
  } else if (!IsHex(file.etag, 40)) {
    return Senseless(environment, reference,
                     absl::StrCat("the object of ", file.path, " is \"", file.etag, "\""));
  }
  if (!IsSafeRelativePath(file.path) || file.size_bytes < 0 || file.size_bytes > kMaxFileBytes) {
    return Senseless(environment, reference,
                     absl::StrCat("a file \"", file.path, "\" of ", file.size_bytes, " bytes"));
  }
  if (snapshot->files.size() == kMaxFiles) {
    return absl::FailedPreconditionError(absl::StrCat(reference.repository, " has more than ",
                                                      kMaxFiles, " files; no model has so many"));
  }
  snapshot->files.push_back(std::move(file));
  return absl::OkStatus();
}

}  // namespace

absl::Duration RetryAfter(const HttpResponse& response) {
  int seconds = 0;
  if (!absl::SimpleAtoi(response.Header("retry-after"), &seconds) || seconds < 0) seconds = 0;
  return absl::Seconds(seconds);
}

absl::Status HubRefusal(const HubEnvironment& environment, const HttpResponse& response,
                        const HubReference& reference, absl::string_view what) {
  const std::string& endpoint = environment.endpoint;
  const std::string code = response.Header("x-error-code");
  const absl::string_view token =
      environment.token.empty() ? "HF_TOKEN is not set" : "HF_TOKEN was sent";
  if (code == "GatedRepo") {
    return absl::PermissionDeniedError(
        absl::StrCat(reference.repository, " is gated: accept its terms at ", endpoint, "/",
                     reference.repository, " and set HF_TOKEN to a token of the account that did (",
                     token, ")"));
  }
  if (code == "RevisionNotFound") {
    return absl::NotFoundError(absl::StrCat(reference.repository, " at ", endpoint,
                                            " has no revision ", reference.revision,
                                            "; name a branch, a tag or a commit of it"));
  }
  if (code == "EntryNotFound") {
    return absl::NotFoundError(
        absl::StrCat(what, " is not at ", endpoint, " in revision ", reference.revision));
  }
  if (response.status == 429) {
    const absl::Duration wait = RetryAfter(response);
    return absl::UnavailableError(absl::StrCat(
        endpoint, " answers too many requests (429) for ", what, "; try again ",
        wait > absl::ZeroDuration() ? absl::StrCat("in ", absl::FormatDuration(wait)) : "later",
        environment.token.empty() ? ", or set HF_TOKEN for a higher limit" : ""));
  }
  if (response.status == 401 || response.status == 404) {
    return absl::NotFoundError(absl::StrCat(
        "there is no model ", reference.repository, " at ", endpoint, ", or it is private (", token,
        "); check the name, or set HF_TOKEN to a token that may read it"));
  }
  if (response.status == 403) {
    return absl::PermissionDeniedError(absl::StrCat(endpoint, " refuses ", what, " (403; ", token,
                                                    "); set HF_TOKEN to a token that may read it"));
  }
  if (response.status == 408 || response.status >= 500) {
    return absl::UnavailableError(absl::StrCat(endpoint, " fails to answer for ", what, " (",
                                               response.status, "); try again later"));
  }
  return absl::FailedPreconditionError(absl::StrCat(endpoint, " answers ", response.status, " for ",
                                                    what,
                                                    ", which no hub does; check HF_ENDPOINT"));
}

HubClient::HubClient(const HubEnvironment& environment, Cancelled cancelled)
    : environment_(environment),
      cancelled_(std::move(cancelled)),
      http_(environment, ApiLimits()) {}

absl::StatusOr<HttpResponse> HubClient::Get(const std::string& url, const HubReference& reference) {
  if (environment_.offline) {
    return absl::FailedPreconditionError(
        absl::StrCat("HF_HUB_OFFLINE is set and ", reference.repository, "@", reference.revision,
                     " is not complete in the Hugging Face cache ", environment_.cache,
                     "; download it there, or unset HF_HUB_OFFLINE"));
  }
  absl::Duration wait = kFirstWait;
  for (int attempt = 1;; ++attempt) {
    HttpRequest request;
    request.url = url;
    request.cancelled = cancelled_;
    const absl::StatusOr<HttpResponse> response = http_.Send(request);
    if (response.ok() && response->status == 200) return response;
    absl::Status refused =
        response.ok() ? HubRefusal(environment_, *response, reference, reference.repository)
                      : response.status();
    const absl::Duration asked = response.ok() ? RetryAfter(*response) : absl::ZeroDuration();
    if (!absl::IsUnavailable(refused) || attempt == kTries || asked > kLongestWait) {
      if (response.ok() || !absl::IsUnavailable(refused)) return refused;
      return absl::UnavailableError(absl::StrCat(
          "cannot ask for ", reference.repository, ": ", response.status().message(),
          "; check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 if it is in the cache"));
    }
    const absl::Time until = absl::Now() + std::max(wait, asked);
    while (absl::Now() < until) {
      if (cancelled_ && cancelled_()) return absl::CancelledError("given up by request");
      absl::SleepFor(std::min(until - absl::Now(), absl::Milliseconds(50)));
    }
    wait *= 2;
  }
}

absl::StatusOr<HubSnapshot> HubClient::Describe(const HubReference& reference) {
  HubSnapshot snapshot;
  snapshot.repository = reference.repository;
  snapshot.commit = reference.revision;
  const std::string model =
      absl::StrCat(environment_.endpoint, "/api/models/", reference.repository);
  if (!IsCommit(reference.revision)) {
    // A revision with a slash is one segment of the path.
    std::string revision = EncodePath(reference.revision);
    for (std::size_t at = 0; (at = revision.find('/', at)) != std::string::npos;) {
      revision.replace(at, 1, "%2F");
    }
    ASSIGN_OR_RETURN(const HttpResponse response,
                     Get(absl::StrCat(model, "/revision/", revision), reference));
    const Json info = Json::parse(response.body, nullptr, false);
    snapshot.commit = info.is_object() ? Text(info, "sha") : "";
    if (!IsCommit(snapshot.commit)) {
      return Senseless(environment_, reference, "an answer without the commit");
    }
  }
  std::string url = absl::StrCat(model, "/tree/", snapshot.commit, "?recursive=true&expand=false");
  std::set<std::string> paths;
  for (int page = 0; !url.empty(); ++page) {
    if (page == kMaxPages) return Senseless(environment_, reference, "a list without an end");
    ASSIGN_OR_RETURN(const HttpResponse response, Get(url, reference));
    const Json entries = Json::parse(response.body, nullptr, false);
    if (!entries.is_array()) return Senseless(environment_, reference, "a list that is none");
    for (const Json& entry : entries) {
      RETURN_IF_ERROR(AddFile(entry, environment_, reference, &snapshot));
    }
    url = NextPage(response);
    if (!url.empty() && OriginOf(url) != OriginOf(environment_.endpoint)) {
      return Senseless(environment_, reference, "a list that goes on at another place");
    }
  }
  for (const HubFile& file : snapshot.files) {
    if (!paths.insert(file.path).second) {
      return Senseless(environment_, reference, absl::StrCat(file.path, " twice"));
    }
  }
  return snapshot;
}

absl::StatusOr<std::vector<HubFile>> SelectModelFiles(const HubSnapshot& snapshot) {
  std::vector<HubFile> files;
  std::vector<std::string> ggufs;
  bool safetensors = false;
  std::string pickle;
  for (const HubFile& file : snapshot.files) {
    const bool at_top = !absl::StrContains(file.path, '/');
    if (at_top && absl::StartsWith(file.path, "model") &&
        absl::EndsWith(file.path, ".safetensors")) {
      safetensors = true;
    }
    if (absl::EndsWith(file.path, ".gguf")) ggufs.push_back(file.path);
    if (absl::EndsWith(file.path, ".bin") || absl::EndsWith(file.path, ".pth")) pickle = file.path;
    if (BelongsToModel(file.path)) files.push_back(file);
  }
  if (safetensors) {
    // The same weights again, for other programs: consolidated.safetensors, onnx/, GGUF files.
    std::erase_if(files, [](const HubFile& file) {
      const bool weights = absl::EndsWith(file.path, ".safetensors");
      return absl::EndsWith(file.path, ".gguf") ||
             (weights &&
              (absl::StrContains(file.path, '/') || absl::StartsWith(file.path, "consolidated")));
    });
    return files;
  }
  if (ggufs.size() > 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(snapshot.repository, " holds several GGUF files (", ggufs[0], ", ", ggufs[1],
                     ggufs.size() > 2 ? ", …" : "",
                     "); download the one you want and give its path as base_model"));
  }
  const bool weights =
      !ggufs.empty() || std::any_of(files.begin(), files.end(), [](const HubFile& file) {
        return absl::EndsWith(file.path, ".safetensors");
      });
  if (weights) return files;
  return absl::FailedPreconditionError(
      pickle.empty()
          ? absl::StrCat(snapshot.repository, "@", snapshot.commit, " holds no weights")
          : absl::StrCat(snapshot.repository, " holds its weights only as pickles (", pickle,
                         "), which are never read; name a model or a revision with safetensors"));
}

}  // namespace offshoot
