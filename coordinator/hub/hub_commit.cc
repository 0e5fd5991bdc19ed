#include "coordinator/hub/hub_commit.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxFilePathBytes = 1024;

}  // namespace

absl::Status CheckHubFilePath(const std::string& path) {
  const bool plain = std::none_of(
      path.begin(), path.end(), [](unsigned char c) { return c < ' ' || c == 0x7f || c == '\\'; });
  if (plain && path.size() <= kMaxFilePathBytes && IsSafeRelativePath(path)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", path.substr(0, 100), "' is no path inside a repository"));
}

std::string HubText(const nlohmann::json& object, const char* key) {
  if (!object.is_object()) return "";
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

std::int64_t HubNumber(const nlohmann::json& object, const char* key) {
  if (!object.is_object()) return -1;
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : -1;
}

absl::StatusOr<std::vector<FileEntry>> ApplyCommit(
    std::vector<FileEntry> files, const std::string& lines,
    const std::function<absl::StatusOr<FileEntry>(const std::string& path,
                                                  const std::string& data)>& keep,
    const std::function<std::optional<std::int64_t>(const std::string& digest)>& find,
    std::string* parent) {
  std::map<std::string, FileEntry> tree;
  for (FileEntry& file : files) {
    const std::string path = file.path;
    tree[path] = std::move(file);
  }
  for (const absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipWhitespace())) {
    const nlohmann::json entry = nlohmann::json::parse(line.begin(), line.end(), nullptr, false);
    const std::string key = HubText(entry, "key");
    if (key.empty() || !entry.contains("value") || !entry["value"].is_object()) {
      return absl::InvalidArgumentError("a line of the commit is no {key, value}");
    }
    const nlohmann::json& value = entry["value"];
    if (key == "header") {
      *parent = HubText(value, "parentCommit");
      continue;
    }
    std::string path = HubText(value, "path");
    if (key == "deletedFolder") {
      path = std::string(absl::StripSuffix(path, "/")) + "/";
      std::erase_if(tree, [&](const auto& file) { return absl::StartsWith(file.first, path); });
      continue;
    }
    RETURN_IF_ERROR(CheckHubFilePath(path));
    if (key == "deletedFile") {
      tree.erase(path);
    } else if (key == "lfsFile") {
      const std::string digest = absl::StrCat("sha256:", HubText(value, "oid"));
      const std::int64_t size = IsDigest(digest) ? find(digest).value_or(-1) : -1;
      const std::int64_t said = HubNumber(value, "size");
      if (size < 0 || (said >= 0 && said != size)) {
        return absl::InvalidArgumentError(
            absl::StrCat("the bytes of ", path, " did not arrive; push again"));
      }
      tree[path] = FileEntry{path, digest, size};
    } else if (key == "file") {
      std::string data;
      if (HubText(value, "encoding") != "base64") {
        data = HubText(value, "content");
      } else if (!absl::Base64Unescape(HubText(value, "content"), &data)) {
        return absl::InvalidArgumentError(absl::StrCat("the content of ", path, " is no base64"));
      }
      ASSIGN_OR_RETURN(tree[path], keep(path, data));
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("a commit does ", key.substr(0, 40), ", which is not known here"));
    }
  }
  if (tree.size() > kMaxHubRepositoryFiles) {
    return absl::InvalidArgumentError(
        absl::StrCat("a repository has at most ", kMaxHubRepositoryFiles, " files"));
  }
  std::vector<FileEntry> result;
  for (auto& [path, file] : tree) {
    // A file may not be a folder as well.
    const auto inside = tree.lower_bound(path + "/");
    if (inside != tree.end() && absl::StartsWith(inside->first, path + "/")) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is a file and a folder"));
    }
    result.push_back(std::move(file));
  }
  return result;
}

}  // namespace offshoot
