#include "hub/push.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "hub/blob_hash.h"

namespace offshoot {
namespace {

using Json = nlohmann::json;

constexpr char kJson[] = "application/json";
constexpr char kLfsJson[] = "application/vnd.git-lfs+json";
constexpr char kLines[] = "application/x-ndjson";
constexpr std::size_t kSampleBytes = 512;
constexpr std::size_t kFilesAPage = 256;
constexpr std::int64_t kMaxRegularBytes = 10 << 20;  // in the commit itself, as base64
constexpr int kPushTries = 4;
constexpr absl::Duration kFirstPushWait = absl::Milliseconds(250);
constexpr std::int64_t kMaxParts = 10'000;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string TextOf(const Json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && found != object.end() && found->is_string()
             ? found->get<std::string>()
             : "";
}

const Json& Field(const Json& object, const char* key) {
  static const Json none;
  if (!object.is_object()) return none;
  const auto found = object.find(key);
  return found == object.end() ? none : *found;
}

absl::StatusOr<std::string> Sample(const HubPushFile& file) {
  std::FILE* in = std::fopen(file.local_path.c_str(), "rbe");
  if (in == nullptr) return ErrnoStatus(errno, absl::StrCat("cannot read ", file.local_path));
  std::string sample(kSampleBytes, '\0');
  sample.resize(std::fread(sample.data(), 1, sample.size(), in));
  std::fclose(in);
  return sample;
}

absl::Status Senseless(const HubEnvironment& environment, absl::string_view what) {
  return absl::FailedPreconditionError(absl::StrCat(environment.endpoint, " answers a push with ",
                                                    what,
                                                    ", which no hub does; check HF_ENDPOINT"));
}

}  // namespace

HubPusher::HubPusher(const HubEnvironment& environment, std::function<bool()> cancelled,
                     const HttpLimits& limits)
    : environment_(environment), cancelled_(std::move(cancelled)), http_(environment, limits) {}

absl::StatusOr<HttpResponse> HubPusher::Post(const std::string& url,
                                             const std::string& content_type,
                                             const std::string& body, const HubReference& reference,
                                             std::vector<int> also_fine) {
  absl::Duration wait = kFirstPushWait;
  for (int attempt = 1;; ++attempt) {
    HttpRequest request;
    request.method = "POST";
    request.url = url;
    request.headers = {absl::StrCat("Content-Type: ", content_type),
                       absl::StrCat("Accept: ", content_type == kLfsJson ? kLfsJson : kJson)};
    request.body = body;
    request.cancelled = cancelled_;
    const absl::StatusOr<HttpResponse> response = http_.Send(request);
    if (response.ok() && (response->status / 100 == 2 ||
                          std::count(also_fine.begin(), also_fine.end(), response->status) > 0)) {
      return response;
    }
    const absl::Status refused =
        !response.ok() ? response.status()
        : response->status == 401 || response->status == 403
            ? absl::PermissionDeniedError(absl::StrCat(
                  environment_.endpoint, " refuses to write to ", reference.repository, " (",
                  response->status, "); set HF_TOKEN to a token that may write there"))
            : HubRefusal(environment_, *response, reference, reference.repository);
    if (!absl::IsUnavailable(refused) || attempt == kPushTries) return refused;
    const absl::Duration asked = response.ok() ? RetryAfter(*response) : absl::ZeroDuration();
    if (asked > absl::Seconds(30)) return refused;
    const absl::Time until = absl::Now() + std::max(wait, asked);
    while (absl::Now() < until) {
      if (cancelled_ && cancelled_()) return absl::CancelledError("given up by request");
      absl::SleepFor(std::min(until - absl::Now(), absl::Milliseconds(50)));
    }
    wait *= 2;
  }
}

absl::Status HubPusher::MakeRepository(const HubPushRequest& request,
                                       const HubReference& reference) {
  const std::size_t slash = request.repository.find('/');
  const Json body = {{"name", request.repository.substr(slash + 1)},
                     {"organization", request.repository.substr(0, slash)},
                     {"type", "model"},
                     {"private", request.make_private},
                     {"visibility", request.make_private ? "private" : "public"}};
  // 409: it is there.
  return Post(absl::StrCat(environment_.endpoint, "/api/repos/create"), kJson, Dump(body),
              reference, {409})
      .status();
}

absl::StatusOr<bool> HubPusher::IsThere(const HubPushRequest& request, std::string* commit) {
  const absl::StatusOr<HubSnapshot> snapshot =
      HubClient(environment_, cancelled_).Describe({request.repository, "main"});
  if (absl::IsNotFound(snapshot.status())) return false;  // nothing was committed yet
  RETURN_IF_ERROR(snapshot.status());
  *commit = snapshot->commit;
  std::map<std::string, const HubFile*> there;
  for (const HubFile& file : snapshot->files) there[file.path] = &file;
  for (const HubPushFile& file : request.files) {
    const auto found = there.find(file.path);
    if (found == there.end() || found->second->size_bytes != file.size_bytes) return false;
    if (!found->second->digest.empty()) {
      if (found->second->digest != file.digest) return false;
      continue;
    }
    ASSIGN_OR_RETURN(const BlobDigests digests, DigestBlob(file.local_path));
    if (digests.git != found->second->etag) return false;
  }
  return true;
}

absl::StatusOr<std::vector<HubPusher::Mode>> HubPusher::AskModes(const HubPushRequest& request,
                                                                 const HubReference& reference) {
  std::map<std::string, Mode> modes;
  for (std::size_t begin = 0; begin < request.files.size(); begin += kFilesAPage) {
    Json files = Json::array();
    for (std::size_t i = begin; i < std::min(begin + kFilesAPage, request.files.size()); ++i) {
      const HubPushFile& file = request.files[i];
      ASSIGN_OR_RETURN(const std::string sample, Sample(file));
      files.push_back(
          {{"path", file.path}, {"size", file.size_bytes}, {"sample", absl::Base64Escape(sample)}});
    }
    ASSIGN_OR_RETURN(const HttpResponse response,
                     Post(absl::StrCat(environment_.endpoint, "/api/models/", request.repository,
                                       "/preupload/main"),
                          kJson, Dump({{"files", std::move(files)}}), reference));
    const Json answer = Json::parse(response.body, nullptr, false);
    for (const Json& file : Field(answer, "files")) {
      const Json& ignored = Field(file, "shouldIgnore");
      modes[TextOf(file, "path")] = ignored.is_boolean() && ignored.get<bool>() ? Mode::kIgnored
                                    : TextOf(file, "uploadMode") == "lfs"       ? Mode::kLarge
                                                                                : Mode::kRegular;
    }
  }
  std::vector<Mode> answer;
  for (const HubPushFile& file : request.files) {
    const auto found = modes.find(file.path);
    if (found == modes.end()) return Senseless(environment_, "no word on how to send a file");
    Mode mode = found->second;
    // Storage takes no empty object, and a commit no large file.
    if (mode == Mode::kLarge && file.size_bytes == 0) mode = Mode::kRegular;
    if (mode == Mode::kRegular && file.size_bytes > kMaxRegularBytes) mode = Mode::kLarge;
    answer.push_back(mode);
  }
  return answer;
}

absl::Status HubPusher::SendLarge(const std::vector<const HubPushFile*>& files,
                                  const HubReference& reference) {
  for (std::size_t begin = 0; begin < files.size(); begin += kFilesAPage) {
    Json objects = Json::array();
    std::map<std::string, const HubPushFile*> by_oid;
    for (std::size_t i = begin; i < std::min(begin + kFilesAPage, files.size()); ++i) {
      const std::string oid = files[i]->digest.substr(sizeof("sha256:") - 1);
      by_oid[oid] = files[i];
      objects.push_back({{"oid", oid}, {"size", files[i]->size_bytes}});
    }
    const Json body = {{"operation", "upload"},
                       {"transfers", {"basic", "multipart"}},
                       {"objects", std::move(objects)},
                       {"hash_algo", "sha256"},
                       {"ref", {{"name", "main"}}}};
    ASSIGN_OR_RETURN(const HttpResponse response,
                     Post(absl::StrCat(environment_.endpoint, "/", reference.repository,
                                       ".git/info/lfs/objects/batch"),
                          kLfsJson, Dump(body), reference));
    const Json answer = Json::parse(response.body, nullptr, false);
    if (!Field(answer, "objects").is_array()) {
      return Senseless(environment_, "no list of objects");
    }
    for (const Json& object : Field(answer, "objects")) {
      const auto file = by_oid.find(TextOf(object, "oid"));
      if (file == by_oid.end()) return Senseless(environment_, "an object that nobody has");
      if (const Json& error = Field(object, "error"); error.is_object()) {
        return absl::FailedPreconditionError(
            absl::StrCat(environment_.endpoint, " does not take ", file->second->path, " for ",
                         reference.repository, ": ", TextOf(error, "message").substr(0, 200)));
      }
      const Json& actions = Field(object, "actions");
      if (!Field(actions, "upload").is_object()) continue;  // it is there
      RETURN_IF_ERROR(SendObject(*file->second, Dump(actions), reference));
    }
  }
  return absl::OkStatus();
}

absl::Status HubPusher::SendObject(const HubPushFile& file, const std::string& action_json,
                                   const HubReference& reference) {
  const Json actions = Json::parse(action_json);
  const Json& upload = Field(actions, "upload");
  const std::string url = TextOf(upload, "href");
  const Json& header = Field(upload, "header");
  std::int64_t part_bytes = 0;
  if (absl::SimpleAtoi(TextOf(header, "chunk_size"), &part_bytes) && part_bytes > 0) {
    const std::int64_t parts = (file.size_bytes + part_bytes - 1) / part_bytes;
    if (parts > kMaxParts) return Senseless(environment_, "too many parts");
    std::map<std::int64_t, std::string> urls;
    for (const auto& [name, value] : header.items()) {
      std::int64_t number = 0;
      if (absl::SimpleAtoi(name, &number) && value.is_string()) urls[number] = value;
    }
    if (static_cast<std::int64_t>(urls.size()) != parts) {
      return Senseless(environment_, "another number of parts than the file has");
    }
    // Our own endpoint says how much of a push that broke off it kept; the last part is always
    // sent.
    std::int64_t kept_bytes = 0;
    if (!absl::SimpleAtoi(TextOf(header, "offshoot_kept_bytes"), &kept_bytes)) kept_bytes = 0;
    Json list = Json::array();
    std::int64_t index = 0;
    for (const auto& [number, part_url] : urls) {
      const std::int64_t offset = index++ * part_bytes;
      if (offset + part_bytes <= kept_bytes && offset + part_bytes < file.size_bytes) {
        list.push_back({{"partNumber", number}, {"etag", "kept"}});
        continue;
      }
      ASSIGN_OR_RETURN(const std::string etag,
                       Put(file, part_url, {}, offset,
                           std::min(part_bytes, file.size_bytes - offset), reference));
      list.push_back({{"partNumber", number}, {"etag", etag}});
    }
    const Json body = {{"oid", file.digest.substr(sizeof("sha256:") - 1)},
                       {"parts", std::move(list)}};
    RETURN_IF_ERROR(Post(url, kLfsJson, Dump(body), reference).status());
  } else {
    std::vector<std::string> headers;
    if (header.is_object()) {
      for (const auto& [name, value] : header.items()) {
        // A line break would begin a header of the server's choice.
        const std::string line = absl::StrCat(name, ": ", TextOf(header, name.c_str()));
        if (!absl::StrContains(line, '\n') && !absl::StrContains(line, '\r')) {
          headers.push_back(line);
        }
      }
    }
    RETURN_IF_ERROR(Put(file, url, headers, 0, file.size_bytes, reference).status());
  }
  const std::string verify = TextOf(Field(actions, "verify"), "href");
  if (verify.empty()) return absl::OkStatus();
  const Json body = {{"oid", file.digest.substr(sizeof("sha256:") - 1)}, {"size", file.size_bytes}};
  return Post(verify, kLfsJson, Dump(body), reference).status();
}

absl::StatusOr<std::string> HubPusher::Put(const HubPushFile& file, const std::string& url,
                                           const std::vector<std::string>& headers,
                                           std::int64_t offset, std::int64_t size_bytes,
                                           const HubReference& reference) {
  const HttpUpload upload{file.local_path, offset, size_bytes};
  absl::Status refused;
  for (int attempt = 0; attempt < kPushTries; ++attempt) {
    HttpRequest request;
    request.method = "PUT";
    request.url = url;
    request.headers = headers;
    // Storage has its own signature in the URL; the token goes no further than the hub.
    request.with_token = false;
    request.upload = &upload;
    request.cancelled = cancelled_;
    const absl::StatusOr<HttpResponse> response = http_.Send(request);
    if (response.ok() && response->status / 100 == 2) return response->Header("etag");
    refused = response.ok() ? HubRefusal(environment_, *response, reference,
                                         absl::StrCat(reference.repository, "'s ", file.path))
                            : response.status();
    if (!absl::IsUnavailable(refused)) break;
  }
  return refused;
}

absl::StatusOr<std::string> HubPusher::Commit(const HubPushRequest& request,
                                              const std::vector<Mode>& modes,
                                              const HubReference& reference) {
  std::string lines =
      Dump({{"key", "header"}, {"value", {{"summary", request.summary}, {"description", ""}}}});
  for (std::size_t i = 0; i < request.files.size(); ++i) {
    const HubPushFile& file = request.files[i];
    if (modes[i] == Mode::kIgnored) continue;
    if (modes[i] == Mode::kLarge) {
      absl::StrAppend(&lines, "\n",
                      Dump({{"key", "lfsFile"},
                            {"value",
                             {{"path", file.path},
                              {"algo", "sha256"},
                              {"oid", file.digest.substr(sizeof("sha256:") - 1)},
                              {"size", file.size_bytes}}}}));
      continue;
    }
    ASSIGN_OR_RETURN(const std::string data, ReadFile(file.local_path));
    absl::StrAppend(&lines, "\n",
                    Dump({{"key", "file"},
                          {"value",
                           {{"path", file.path},
                            {"encoding", "base64"},
                            {"content", absl::Base64Escape(data)}}}}));
  }
  ASSIGN_OR_RETURN(
      const HttpResponse response,
      Post(absl::StrCat(environment_.endpoint, "/api/models/", request.repository, "/commit/main"),
           kLines, lines, reference));
  const Json answer = Json::parse(response.body, nullptr, false);
  const std::string commit = TextOf(answer, "commitOid");
  if (!IsCommit(commit)) return Senseless(environment_, "no commit");
  return commit;
}

absl::StatusOr<std::string> HubPusher::Push(const HubPushRequest& request) {
  const HubReference reference{request.repository, "main"};
  if (environment_.offline || environment_.token.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot push to ", request.repository, ": ",
                     environment_.offline ? "HF_HUB_OFFLINE is set; unset it"
                                          : "HF_TOKEN is not set; set it to a token that may "
                                            "write there"));
  }
  RETURN_IF_ERROR(MakeRepository(request, reference));
  std::string commit;
  ASSIGN_OR_RETURN(const bool there, IsThere(request, &commit));
  if (there) return commit;
  ASSIGN_OR_RETURN(const std::vector<Mode> modes, AskModes(request, reference));
  std::vector<const HubPushFile*> large;
  for (std::size_t i = 0; i < request.files.size(); ++i) {
    if (modes[i] == Mode::kLarge) large.push_back(&request.files[i]);
  }
  RETURN_IF_ERROR(SendLarge(large, reference));
  return Commit(request, modes, reference);
}

}  // namespace offshoot
