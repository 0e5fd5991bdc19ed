#include "hub/environment.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/files.h"

namespace offshoot {
namespace {

constexpr const char* kDefaultEndpoint = "https://huggingface.co";
constexpr std::size_t kMaxNameBytes = 96;  // of either part, as the hub has it
constexpr std::size_t kMaxRevisionBytes = 200;
constexpr std::size_t kCommitDigits = 40;

bool IsTrue(std::string text) {
  absl::AsciiStrToLower(&text);
  return text == "1" || text == "on" || text == "yes" || text == "true";
}

std::string WithHome(const std::string& path, const GetVariable& get) {
  if (!absl::StartsWith(path, "~/")) return path;
  return JoinPath(get("HOME"), path.substr(2));
}

// Passwords in a URL end in logs.
std::string WithoutUser(const std::string& url) {
  const std::size_t scheme = url.find("://");
  if (scheme == std::string::npos) return url;
  const std::size_t host = scheme + 3;
  const std::size_t end = std::min(url.find('/', host), url.size());
  const std::size_t at = url.rfind('@', end);
  if (at == std::string::npos || at < host) return url;
  return url.substr(0, host) + url.substr(at + 1);
}

bool IsName(absl::string_view text) {
  if (text.empty() || text.size() > kMaxNameBytes) return false;
  if (text.front() == '.' || text.front() == '-' || text.back() == '.') return false;
  if (absl::StrContains(text, "..") || absl::StrContains(text, "--")) return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

bool IsRevision(absl::string_view text) {
  if (text.size() > kMaxRevisionBytes || !IsSafeRelativePath(text)) return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-' || c == '/' || c == '+';
  });
}

}  // namespace

std::string VariableOfProcess(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

HubEnvironment ReadHubEnvironment(const GetVariable& get) {
  HubEnvironment hub;
  hub.endpoint = get("HF_ENDPOINT");
  if (hub.endpoint.empty()) hub.endpoint = kDefaultEndpoint;
  hub.endpoint = WithoutUser(hub.endpoint);
  while (absl::EndsWith(hub.endpoint, "/")) hub.endpoint.pop_back();
  std::string home = WithHome(get("HF_HOME"), get);
  if (home.empty()) {
    std::string user_cache = get("XDG_CACHE_HOME");
    if (user_cache.empty() && !get("HOME").empty()) user_cache = JoinPath(get("HOME"), ".cache");
    if (!user_cache.empty()) home = JoinPath(user_cache, "huggingface");
  }
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (hub.cache.empty()) hub.cache = WithHome(get(name), get);
  }
  if (hub.cache.empty() && !home.empty()) hub.cache = JoinPath(home, "hub");
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    if (hub.token.empty()) hub.token = get(name);
  }
  if (hub.token.empty()) {
    std::string path = WithHome(get("HF_TOKEN_PATH"), get);
    if (path.empty() && !home.empty()) path = JoinPath(home, "token");
    if (!path.empty()) {
      if (const absl::StatusOr<std::string> text = ReadFile(path); text.ok()) hub.token = *text;
    }
  }
  // A line break in it would become a header of its own.
  std::erase_if(hub.token, [](unsigned char c) { return c <= ' ' || c == 0x7f; });
  for (const char* name : {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}) {
    if (hub.ca_file.empty()) hub.ca_file = get(name);
  }
  hub.offline = IsTrue(get("HF_HUB_OFFLINE")) || IsTrue(get("TRANSFORMERS_OFFLINE"));
  return hub;
}

bool ParseHubReference(absl::string_view text, HubReference* reference) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits('@', 1));
  const std::vector<absl::string_view> names = absl::StrSplit(parts[0], '/');
  if (names.size() != 2 || !IsName(names[0]) || !IsName(names[1])) return false;
  const absl::string_view revision = parts.size() > 1 ? parts[1] : absl::string_view("main");
  if (!IsRevision(revision)) return false;
  reference->repository = std::string(parts[0]);
  reference->revision = std::string(revision);
  return true;
}

bool IsCommit(absl::string_view revision) {
  return revision.size() == kCommitDigits &&
         std::all_of(revision.begin(), revision.end(), [](unsigned char c) {
           return absl::ascii_isxdigit(c) && !absl::ascii_isupper(c);
         });
}

}  // namespace offshoot
