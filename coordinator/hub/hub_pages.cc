#include "coordinator/hub/hub_pages.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/files.h"

namespace offshoot {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr std::size_t kMaxPathBytes = 4096;
constexpr int kPointerBytes = 134;  // of git's stand-in for a large file: what clients expect there

std::string DumpPage(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

WebReply JsonReply(const CatalogSnapshot& snapshot, const OrderedJson& json) {
  return WebReply{
      200,
      {{"Content-Type", "application/json; charset=utf-8"}, {"X-Repo-Commit", snapshot.commit}},
      DumpPage(json),
      "",
      0};
}

WebReply Refuse(int status, const char* code, const std::string& message) {
  WebReply reply{
      status,
      {{"Content-Type", "application/json; charset=utf-8"}, {"X-Error-Message", message}},
      DumpPage({{"error", message}}),
      "",
      0};
  if (code != nullptr) reply.headers.emplace_back("X-Error-Code", code);
  return reply;
}

std::string EtagOf(const FileEntry& file) {
  return file.digest.substr(std::min(sizeof("sha256:") - 1, file.digest.size()));
}

// A header's value holds no line break, whatever a name does.
std::string OneLine(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c >= 0x7f; }, '?');
  return text;
}

OrderedJson EntryOf(const FileEntry& file) {
  const std::string name = EtagOf(file);
  return {{"type", "file"},
          {"oid", name.substr(0, 40)},
          {"size", file.size_bytes},
          {"lfs", {{"oid", name}, {"size", file.size_bytes}, {"pointerSize", kPointerBytes}}},
          {"path", file.path}};
}

}  // namespace

HubPath ParseHubPath(const std::string& path) {
  HubPath parsed;
  if (path.size() > kMaxPathBytes || path.empty() || path.front() != '/') return parsed;
  std::vector<std::string> parts = absl::StrSplit(path.substr(1), '/');
  const bool api = parts.size() > 2 && parts[0] == "api" && parts[1] == "models";
  if (api) parts.erase(parts.begin(), parts.begin() + 2);
  if (parts[0].empty()) return parsed;
  const auto verb_at = [&](std::size_t index) {
    if (parts.size() <= index + 1) return false;  // a revision follows
    return api ? parts[index] == "revision" || parts[index] == "tree" : parts[index] == "resolve";
  };
  const std::size_t names = verb_at(1) ? 1 : 2;
  if (!verb_at(names)) {
    if (!api || parts.size() > 2) return parsed;
    parsed.kind = HubPath::Kind::kModel;
    parsed.repository = absl::StrJoin(parts, "/");
    return parsed;
  }
  parsed.repository = absl::StrJoin(parts.begin(), parts.begin() + static_cast<int>(names), "/");
  parsed.revision = parts[names + 1];
  parsed.path = absl::StrJoin(parts.begin() + static_cast<int>(names) + 2, parts.end(), "/");
  if (!api) {
    parsed.kind = parsed.path.empty() ? HubPath::Kind::kNone : HubPath::Kind::kFile;
  } else if (parts[names] == "tree") {
    parsed.kind = HubPath::Kind::kTree;
  } else {
    parsed.kind = parsed.path.empty() ? HubPath::Kind::kModel : HubPath::Kind::kNone;
  }
  return parsed;
}

bool HubPages::Answer(const WebRequest& request, WebReply* reply) {
  const HubPath asked = ParseHubPath(request.path);
  if (asked.kind == HubPath::Kind::kNone) return false;
  std::string team;
  if (authorise_) {
    const absl::StatusOr<std::string> allowed = authorise_(request.header("Authorization"));
    if (!allowed.ok()) {
      const int code = absl::IsUnauthenticated(allowed.status()) ? 401 : 403;
      *reply = Refuse(code, nullptr, "Invalid credentials in Authorization header");
      if (code == 401) reply->headers.emplace_back("WWW-Authenticate", "Bearer");
      return true;
    }
    team = *allowed;
  }
  absl::StatusOr<CatalogSnapshot> snapshot = catalog_.Find(asked.repository, asked.revision);
  if (snapshot.ok() && !team.empty() && !snapshot->team.empty() && snapshot->team != team) {
    // Not even its existence is told.
    snapshot = absl::NotFoundError(absl::StrCat("there is no model ", asked.repository, " here"));
  }
  if (!snapshot.ok()) {
    const std::string message = OneLine(std::string(snapshot.status().message()));
    if (absl::IsNotFound(snapshot.status())) {
      *reply = Refuse(404, "RepoNotFound", message);
    } else if (absl::IsOutOfRange(snapshot.status())) {
      *reply = Refuse(404, "RevisionNotFound", message);
    } else {
      *reply = Refuse(503, nullptr, "the coordinator cannot read its store now");
    }
    return true;
  }
  switch (asked.kind) {
    case HubPath::Kind::kNone:
      return false;
    case HubPath::Kind::kModel:
      *reply = AnswerModel(*snapshot);
      return true;
    case HubPath::Kind::kTree: {
      const std::string recursive = request.query("recursive");
      *reply = AnswerTree(*snapshot, asked.path,
                          recursive == "1" || absl::EqualsIgnoreCase(recursive, "true"));
      return true;
    }
    case HubPath::Kind::kFile:
      *reply = AnswerFile(*snapshot, asked.path);
      return true;
  }
  return false;
}

WebReply HubPages::AnswerModel(const CatalogSnapshot& snapshot) const {
  const std::string created =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", snapshot.created, absl::UTCTimeZone());
  OrderedJson siblings = OrderedJson::array();
  bool adapter = false;
  for (const FileEntry& file : snapshot.files) {
    siblings.push_back({{"rfilename", file.path}});
    adapter = adapter || file.path == "adapter_config.json";
  }
  OrderedJson tags = OrderedJson::array({"offshoot"});
  if (adapter) tags.push_back("lora");
  return JsonReply(snapshot, {{"_id", snapshot.commit.substr(0, 24)},
                              {"id", snapshot.repository},
                              {"modelId", snapshot.repository},
                              {"sha", snapshot.commit},
                              {"private", false},
                              {"gated", false},
                              {"disabled", false},
                              {"downloads", 0},
                              {"likes", 0},
                              {"library_name", adapter ? "peft" : "transformers"},
                              {"tags", std::move(tags)},
                              {"createdAt", created},
                              {"lastModified", created},
                              {"siblings", std::move(siblings)}});
}

WebReply HubPages::AnswerTree(const CatalogSnapshot& snapshot, const std::string& folder,
                              bool recursive) const {
  std::string prefix = folder;
  while (absl::EndsWith(prefix, "/")) prefix.pop_back();
  if (!prefix.empty()) prefix += "/";
  OrderedJson entries = OrderedJson::array();
  std::set<std::string> folders;
  for (const FileEntry& file : snapshot.files) {
    if (!absl::StartsWith(file.path, prefix)) continue;
    std::size_t slash = file.path.find('/', prefix.size());
    for (; slash != std::string::npos; slash = file.path.find('/', slash + 1)) {
      const std::string inner = file.path.substr(0, slash);
      if (folders.insert(inner).second) {
        entries.push_back(
            {{"type", "directory"}, {"oid", snapshot.commit}, {"size", 0}, {"path", inner}});
      }
      if (!recursive) break;
    }
    if (slash == std::string::npos) entries.push_back(EntryOf(file));
  }
  if (entries.empty() && !prefix.empty()) {
    return Refuse(404, "EntryNotFound", OneLine(absl::StrCat(folder, " does not exist here")));
  }
  return JsonReply(snapshot, entries);
}

WebReply HubPages::AnswerFile(const CatalogSnapshot& snapshot, const std::string& path) const {
  const auto found = std::find_if(snapshot.files.begin(), snapshot.files.end(),
                                  [&](const FileEntry& file) { return file.path == path; });
  if (found == snapshot.files.end()) {
    WebReply reply =
        Refuse(404, "EntryNotFound", OneLine(absl::StrCat(path, " does not exist here")));
    reply.headers.emplace_back("X-Repo-Commit", snapshot.commit);
    return reply;
  }
  const std::string local = catalog_.PathOf(*found);
  if (local.empty()) {
    return Refuse(503, nullptr,
                  OneLine(absl::StrCat("the bytes of ", path, " are gone or changed")));
  }
  const std::string etag = EtagOf(*found);
  WebReply reply;
  reply.headers = {{"X-Repo-Commit", snapshot.commit},
                   {"ETag", absl::StrCat("\"", etag, "\"")},
                   {"X-Linked-Etag", absl::StrCat("\"", etag, "\"")},
                   {"X-Linked-Size", absl::StrCat(found->size_bytes)},
                   {"Content-Type", "application/octet-stream"},
                   {"Content-Disposition", "attachment"},
                   {"X-Content-Type-Options", "nosniff"}};
  reply.file_path = local;
  reply.file_bytes = found->size_bytes;
  return reply;
}

}  // namespace offshoot
