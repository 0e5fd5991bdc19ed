#include "coordinator/hub/hub_writes.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "coordinator/hub/hub_commit.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxJsonBytes = 32 << 20;    // a commit, its small files in it
constexpr std::int64_t kMaxHeldBytes = 256 << 20;  // of all bodies at a time
constexpr std::size_t kMaxBatchObjects = 1024;
constexpr std::size_t kMaxPartOfName = 96;
constexpr absl::Duration kRegisterTimeout = absl::Seconds(30);

WebReply WriteReply(int status, const nlohmann::json& json) {
  return WebReply{status,
                  {{"Content-Type", "application/json; charset=utf-8"}},
                  json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                  "",
                  0};
}

WebReply RefuseWrite(int status, const std::string& message) {
  WebReply reply = WriteReply(status, {{"error", message}});
  std::string line = message.substr(0, 500);
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < ' ' || c >= 0x7f; }, '?');
  reply.headers.emplace_back("X-Error-Message", line);
  return reply;
}

int HttpCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
      return 409;
    case absl::StatusCode::kInvalidArgument:
      return 400;
    case absl::StatusCode::kFailedPrecondition:
      return 412;
    case absl::StatusCode::kDataLoss:
      return 422;
    case absl::StatusCode::kResourceExhausted:
      return 507;
    default:
      return 503;
  }
}

WebReply RefuseWith(const absl::Status& status) {
  return RefuseWrite(HttpCodeOf(status), std::string(status.message()));
}

bool IsNamePart(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxPartOfName &&
         absl::ascii_isalnum(static_cast<unsigned char>(text.front())) &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
         });
}

absl::Status CheckRepositoryName(const std::string& name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  if (parts.size() == 2 && IsNamePart(parts[0]) && IsNamePart(parts[1]) &&
      !absl::EndsWith(name, ".git")) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "a repository is TEAM/NAME: letters, digits, '.', '_' and '-' around one '/'");
}

bool IsOid(const std::string& text) { return IsDigest(absl::StrCat("sha256:", text)); }

std::string NewSecret() {
  std::string secret;
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&secret, "%016x", RandomBits());
  return secret;
}

// Where this request came to, as its client names it.
std::string OriginOf(const WebRequest& request, bool tls) {
  const std::string host = request.header("Host");
  const bool plain =
      !host.empty() && host.size() < 300 && std::all_of(host.begin(), host.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
               absl::StrContains("-._:[]", absl::string_view(&c, 1));
      });
  return plain ? absl::StrCat(tls ? "https://" : "http://", host) : "";
}

}  // namespace

struct HubWrites::Call {
  enum class Kind { kCreate, kValidate, kPreupload, kBatch, kComplete, kCommit } kind;
  std::string repository;  // empty where the path names none
  std::string oid;         // of kComplete
  std::string team;        // the one it is confined to; empty: any
  std::string origin;      // of our own URLs
};

// A body that is kept in memory, bounded, and answered at its end.
class HubWrites::JsonBody : public WebBody {
 public:
  JsonBody(HubWrites& writes, Call call) : writes_(writes), call_(std::move(call)) {}
  ~JsonBody() override { writes_.held_bytes_ -= static_cast<std::int64_t>(body_.size()); }

  bool Append(absl::string_view data) override {
    const auto bytes = static_cast<std::int64_t>(data.size());
    if (too_large_ || body_.size() + data.size() > kMaxJsonBytes) {
      too_large_ = true;
      return false;
    }
    if (writes_.held_bytes_.fetch_add(bytes) + bytes > kMaxHeldBytes) {
      writes_.held_bytes_ -= bytes;
      crowded_ = true;
      return false;
    }
    body_.append(data.data(), data.size());
    return true;
  }

  WebReply Finish() override {
    if (too_large_) {
      return RefuseWrite(413, absl::StrCat("a request has at most ", kMaxJsonBytes >> 20,
                                           " MiB; send files as large objects"));
    }
    if (crowded_) return RefuseWrite(503, "too many pushes at a time; try again");
    return writes_.Answer(call_, body_);
  }

 private:
  HubWrites& writes_;
  const Call call_;
  std::string body_;
  bool too_large_ = false;
  bool crowded_ = false;
};

// The bytes of an object, or of a part of it, on their way to the artifacts.
class HubWrites::ObjectBody : public WebBody {
 public:
  // expected: the bytes of this part. upload: null where they are here already.
  ObjectBody(std::unique_ptr<ArtifactUpload> upload, std::int64_t expected, bool last)
      : upload_(std::move(upload)), expected_(expected), last_(last) {}

  bool Append(absl::string_view data) override {
    got_ += static_cast<std::int64_t>(data.size());
    if (got_ > expected_) {
      status_ = absl::InvalidArgumentError("more bytes than were announced");
    } else if (upload_ != nullptr && status_.ok()) {
      status_ = upload_->Append(data);
    }
    return status_.ok();
  }

  WebReply Finish() override {
    if (status_.ok() && got_ != expected_) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat("only ", got_, " of ", expected_, " bytes came; send them again"));
    }
    if (status_.ok() && last_ && upload_ != nullptr) status_ = upload_->Finish();
    if (!status_.ok()) return RefuseWith(status_);
    WebReply reply = WriteReply(200, nlohmann::json::object());
    reply.headers.emplace_back("ETag", "\"kept\"");
    return reply;
  }

 private:
  std::unique_ptr<ArtifactUpload> upload_;
  const std::int64_t expected_;
  const bool last_;
  std::int64_t got_ = 0;
  absl::Status status_;
};

HubWrites::HubWrites(HubCatalog& catalog, ArtifactDirectory& artifacts, Register register_model,
                     Authorise authorise, Options options)
    : catalog_(catalog),
      artifacts_(artifacts),
      register_(std::move(register_model)),
      authorise_(std::move(authorise)),
      options_(options),
      secret_(NewSecret()) {}

WebReception HubWrites::Receive(const WebRequest& request) {
  const auto refuse = [](WebReply reply) { return WebReception{std::move(reply), nullptr}; };
  std::vector<std::string> parts = absl::StrSplit(request.path, '/');
  parts.erase(parts.begin());
  if (request.method == "PUT") {
    if (parts.size() == 3 && parts[0] == "lfs" && parts[1] == "objects" && IsOid(parts[2])) {
      return ReceiveObject(request, parts[2]);
    }
    return refuse(RefuseWrite(404, "nothing is put here"));
  }
  Call call;
  call.origin = OriginOf(request, options_.tls);
  bool is_signed = false;
  if (request.path == "/api/repos/create") {
    call.kind = Call::Kind::kCreate;
  } else if (request.path == "/api/validate-yaml") {
    call.kind = Call::Kind::kValidate;
  } else if (parts.size() == 3 && parts[0] == "lfs" && parts[1] == "complete" && IsOid(parts[2])) {
    call.kind = Call::Kind::kComplete;
    call.oid = parts[2];
    is_signed = CheckQuery(request, call.oid).has_value();
    if (!is_signed) return refuse(RefuseWrite(403, "this URL is old; ask for another"));
  } else if (parts.size() == 6 && parts[0] == "api" && parts[1] == "models" &&
             (parts[4] == "preupload" || parts[4] == "commit")) {
    call.kind = parts[4] == "commit" ? Call::Kind::kCommit : Call::Kind::kPreupload;
    call.repository = absl::StrCat(parts[2], "/", parts[3]);
    if (parts[5] != "main") {
      WebReply reply = RefuseWrite(404, "only the revision main is pushed to");
      reply.headers.emplace_back("X-Error-Code", "RevisionNotFound");
      return refuse(std::move(reply));
    }
  } else if (parts.size() == 6 && absl::EndsWith(parts[1], ".git") && parts[2] == "info" &&
             parts[3] == "lfs" && parts[4] == "objects" && parts[5] == "batch") {
    call.kind = Call::Kind::kBatch;
    call.repository = absl::StrCat(parts[0], "/", absl::StripSuffix(parts[1], ".git"));
  } else {
    return refuse(RefuseWrite(404, "nothing is posted here"));
  }
  if (authorise_ && !is_signed) {
    const absl::StatusOr<std::string> team = authorise_(request.header("Authorization"));
    if (!team.ok()) return refuse(RefuseWith(team.status()));
    call.team = *team;
  }
  if (!call.repository.empty()) {
    if (const absl::Status named = CheckRepositoryName(call.repository); !named.ok()) {
      return refuse(RefuseWith(named));
    }
    if (!call.team.empty() && !absl::StartsWith(call.repository, call.team + "/")) {
      return refuse(RefuseWrite(
          403, absl::StrCat("you may push to your team's repositories: ", call.team, "/NAME")));
    }
  }
  return {{}, std::make_unique<JsonBody>(*this, std::move(call))};
}

WebReception HubWrites::ReceiveObject(const WebRequest& request, const std::string& oid) {
  const auto asked = CheckQuery(request, oid);
  if (!asked) return {RefuseWrite(403, "this URL is old; ask for another"), nullptr};
  const auto [size, part] = *asked;
  const bool in_parts = part > 0;
  const std::int64_t offset = in_parts ? (part - 1) * options_.part_bytes : 0;
  const std::int64_t expected = in_parts ? std::min(options_.part_bytes, size - offset) : size;
  const std::string digest = absl::StrCat("sha256:", oid);
  // A part that is here in whole is not written again.
  const bool here =
      artifacts_.Find(digest).has_value() ||
      (in_parts && offset + expected < size && artifacts_.PartSize(digest) >= offset + expected);
  if (here) return {{}, std::make_unique<ObjectBody>(nullptr, expected, false)};
  auto upload = artifacts_.BeginUpload(digest, size, offset);
  if (!upload.ok()) return {RefuseWith(upload.status()), nullptr};
  return {{},
          std::make_unique<ObjectBody>(*std::move(upload), expected, offset + expected == size)};
}

std::string HubWrites::SignedQuery(const std::string& oid, std::int64_t size_bytes,
                                   std::int64_t part) const {
  const std::string until = absl::StrCat(absl::ToUnixSeconds(absl::Now() + options_.url_lifetime));
  const std::string text = absl::StrCat(oid, " ", size_bytes, " ", part, " ", until);
  return absl::StrCat("?size=", size_bytes, "&part=", part, "&until=", until, "&signature=",
                      DigestOf(absl::StrCat(secret_, DigestOf(absl::StrCat(secret_, text))))
                          .substr(sizeof("sha256:") - 1));
}

std::optional<std::pair<std::int64_t, std::int64_t>> HubWrites::CheckQuery(
    const WebRequest& request, const std::string& oid) const {
  std::int64_t size = -1;
  std::int64_t part = -1;
  std::int64_t until = 0;
  if (!absl::SimpleAtoi(request.query("size"), &size) ||
      !absl::SimpleAtoi(request.query("part"), &part) ||
      !absl::SimpleAtoi(request.query("until"), &until) || size < 0 || part < 0 ||
      absl::FromUnixSeconds(until) < absl::Now()) {
    return std::nullopt;
  }
  const std::string text = absl::StrCat(oid, " ", size, " ", part, " ", until);
  const std::string expected =
      DigestOf(absl::StrCat(secret_, DigestOf(absl::StrCat(secret_, text))));
  // Of digests of it, so that the time tells nothing of the signature.
  const std::string given = absl::StrCat("sha256:", request.query("signature"));
  if (DigestOf(absl::StrCat(secret_, given)) != DigestOf(absl::StrCat(secret_, expected))) {
    return std::nullopt;
  }
  return std::pair(size, part);
}

WebReply HubWrites::Answer(const Call& call, const std::string& body) {
  switch (call.kind) {
    case Call::Kind::kCreate:
      return Create(call, body);
    case Call::Kind::kValidate:
      return WriteReply(
          200, {{"errors", nlohmann::json::array()}, {"warnings", nlohmann::json::array()}});
    case Call::Kind::kPreupload:
      return Preupload(body);
    case Call::Kind::kBatch:
      return Batch(call, body);
    case Call::Kind::kComplete:
      return Complete(call);
    case Call::Kind::kCommit:
      return Commit(call, body);
  }
  return RefuseWrite(404, "nothing is posted here");
}

absl::StatusOr<std::vector<FileEntry>> HubWrites::Current(const std::string& repository) {
  absl::StatusOr<CatalogSnapshot> there = catalog_.Find(repository, "main");
  if (absl::IsNotFound(there.status())) return std::vector<FileEntry>{};
  RETURN_IF_ERROR(there.status());
  if (!there->pushed) {
    return absl::AlreadyExistsError(
        absl::StrCat(repository,
                     " is a derivative or a registered model here, which nobody writes"
                     " to; push to another name"));
  }
  return std::move(there->files);
}

WebReply HubWrites::Create(const Call& call, const std::string& body) {
  const nlohmann::json asked = nlohmann::json::parse(body, nullptr, false);
  std::string team = HubText(asked, "organization");
  if (team.empty()) team = call.team;
  const std::string repository = absl::StrCat(team, "/", HubText(asked, "name"));
  if (const std::string type = HubText(asked, "type"); !type.empty() && type != "model") {
    return RefuseWrite(400, "only models are kept here");
  }
  if (const absl::Status named = CheckRepositoryName(repository); !named.ok()) {
    return RefuseWith(named);
  }
  if (!call.team.empty() && team != call.team) {
    return RefuseWrite(
        403, absl::StrCat("you may push to your team's repositories: ", call.team, "/NAME"));
  }
  const absl::StatusOr<std::vector<FileEntry>> there = Current(repository);
  if (!there.ok()) return RefuseWith(there.status());
  const nlohmann::json answer = {{"url", absl::StrCat(call.origin, "/", repository)},
                                 {"name", repository},
                                 {"id", repository}};
  if (there->empty()) return WriteReply(200, answer);
  nlohmann::json taken = answer;
  taken["error"] = "You already created this model repo";
  return WriteReply(409, taken);
}

WebReply HubWrites::Preupload(const std::string& body) const {
  const nlohmann::json asked = nlohmann::json::parse(body, nullptr, false);
  if (!asked.is_object() || !asked.contains("files") || !asked["files"].is_array() ||
      asked["files"].size() > kMaxHubRepositoryFiles) {
    return RefuseWrite(400, "this is no list of at most 4096 files");
  }
  nlohmann::json files = nlohmann::json::array();
  for (const nlohmann::json& file : asked["files"]) {
    const std::string path = HubText(file, "path");
    if (const absl::Status inside = CheckHubFilePath(path); !inside.ok()) return RefuseWith(inside);
    files.push_back({{"path", path}, {"uploadMode", "lfs"}, {"shouldIgnore", false}});
  }
  return WriteReply(200, {{"files", std::move(files)}});
}

WebReply HubWrites::Batch(const Call& call, const std::string& body) {
  const nlohmann::json asked = nlohmann::json::parse(body, nullptr, false);
  if (HubText(asked, "operation") != "upload" || !asked.contains("objects") ||
      !asked["objects"].is_array() || asked["objects"].size() > kMaxBatchObjects) {
    return RefuseWrite(400, "this is no batch of at most 1024 objects to upload");
  }
  if (call.origin.empty()) return RefuseWrite(400, "the request has no Host header");
  nlohmann::json objects = nlohmann::json::array();
  for (const nlohmann::json& wanted : asked["objects"]) {
    const std::string oid = HubText(wanted, "oid");
    const std::int64_t size = HubNumber(wanted, "size");
    if (!IsOid(oid) || size < 0 || size / options_.part_bytes >= 10'000) {
      return RefuseWrite(400, "an object has no SHA-256, or no size that can be");
    }
    nlohmann::json entry = {{"oid", oid}, {"size", size}};
    const std::string digest = absl::StrCat("sha256:", oid);
    if (!artifacts_.Find(digest)) {
      const std::string url = absl::StrCat(call.origin, "/lfs/objects/", oid);
      nlohmann::json upload = {{"href", url + SignedQuery(oid, size, 0)}};
      if (size > options_.part_bytes) {
        nlohmann::json header = {
            {"chunk_size", absl::StrCat(options_.part_bytes)},
            {"offshoot_kept_bytes", absl::StrCat(artifacts_.PartSize(digest))}};
        for (std::int64_t part = 1; (part - 1) * options_.part_bytes < size; ++part) {
          header[absl::StrCat(part)] = url + SignedQuery(oid, size, part);
        }
        upload = {
            {"href", absl::StrCat(call.origin, "/lfs/complete/", oid, SignedQuery(oid, size, 0))},
            {"header", std::move(header)}};
      }
      entry["actions"] = {{"upload", std::move(upload)}};
    }
    objects.push_back(std::move(entry));
  }
  return WriteReply(200, {{"transfer", "basic"}, {"objects", std::move(objects)}});
}

WebReply HubWrites::Complete(const Call& call) const {
  if (artifacts_.Find(absl::StrCat("sha256:", call.oid))) {
    return WriteReply(200, nlohmann::json::object());
  }
  return RefuseWrite(422,
                     "the object is not whole; ask for its URLs again and send what is missing");
}

absl::Status HubWrites::RegisterAndWait(const BaseModelRecord& model) {
  struct Outcome {
    absl::Notification done;
    absl::Status status;
  };
  const auto outcome = std::make_shared<Outcome>();
  register_(model, [outcome](const absl::Status& status) {
    outcome->status = status;
    outcome->done.Notify();
  });
  if (!outcome->done.WaitForNotificationWithTimeout(kRegisterTimeout)) {
    return absl::UnavailableError("the coordinator is busy; push again, nothing is sent twice");
  }
  return outcome->status;
}

WebReply HubWrites::Commit(const Call& call, const std::string& body) {
  const std::string& repository = call.repository;
  {
    absl::MutexLock lock(&mutex_);
    if (!committing_.insert(repository).second) {
      return RefuseWrite(503, "another commit to this repository is under way; try again");
    }
  }
  const auto commit = [&]() -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(std::vector<FileEntry> files, Current(repository));
    const std::string before = files.empty() ? "" : CommitOf(files);
    std::string parent;
    ASSIGN_OR_RETURN(
        files,
        ApplyCommit(
            std::move(files), body,
            [this](const std::string& path, const std::string& data) -> absl::StatusOr<FileEntry> {
              FileEntry entry{path, DigestOf(data), static_cast<std::int64_t>(data.size())};
              ASSIGN_OR_RETURN(const auto upload,
                               artifacts_.BeginUpload(entry.digest, entry.size_bytes, 0));
              if (!upload->already_there()) RETURN_IF_ERROR(upload->Append(data));
              RETURN_IF_ERROR(upload->Finish());
              return entry;
            },
            [this](const std::string& digest) { return artifacts_.Find(digest); }, &parent));
    if (!parent.empty() && !absl::StartsWith(before, parent)) {
      return absl::FailedPreconditionError(
          absl::StrCat(repository, " is not at the commit ", parent.substr(0, 40), " any more"));
    }
    if (files.empty()) return absl::InvalidArgumentError("a commit must leave a file");
    BaseModelRecord model;
    model.team = repository.substr(0, repository.find('/'));
    model.digest = DigestOfFiles(files);
    model.files = std::move(files);
    const std::string oid = CommitOf(model.files);
    // The revision first: once main is there, so is what it names.
    for (const std::string& name : {absl::StrCat(repository, "@", oid), repository}) {
      model.name = name;
      RETURN_IF_ERROR(RegisterAndWait(model));
    }
    spdlog::info("{} was pushed: {} files, commit {}", repository, model.files.size(), oid);
    return oid;
  };
  const absl::StatusOr<std::string> oid = commit();
  {
    absl::MutexLock lock(&mutex_);
    committing_.erase(repository);
  }
  if (!oid.ok()) return RefuseWith(oid.status());
  return WriteReply(200,
                    {{"success", true},
                     {"commitOid", *oid},
                     {"commitUrl", absl::StrCat(call.origin, "/", repository, "/commit/", *oid)},
                     {"hookOutput", ""}});
}

}  // namespace offshoot
