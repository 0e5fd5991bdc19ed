#include "worker/hub_models.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "hub/client.h"

namespace offshoot::worker {
namespace {

std::string FormatAmount(std::int64_t done_bytes, std::int64_t total_bytes) {
  constexpr double kMega = 1e6;
  constexpr double kGiga = 1e9;
  const bool large = total_bytes >= 1'000'000'000;
  const double unit = large ? kGiga : kMega;
  return absl::StrFormat("%.1f of %.1f %s", static_cast<double>(done_bytes) / unit,
                         static_cast<double>(total_bytes) / unit, large ? "GB" : "MB");
}

// The files of the commit that the coordinator asked for: what the hub says of them must agree.
absl::StatusOr<HubSnapshot> Choose(const HubSnapshot& snapshot, const v1::Input& input) {
  std::map<std::string, const HubFile*> there;
  for (const HubFile& file : snapshot.files) there[file.path] = &file;
  HubSnapshot chosen{snapshot.repository, snapshot.commit, {}};
  for (const v1::File& file : input.files()) {
    const auto found = there.find(file.path());
    const bool same = found != there.end() && found->second->size_bytes == file.size_bytes() &&
                      (found->second->digest.empty() || found->second->digest == file.digest());
    if (!same) {
      return absl::DataLossError(absl::StrCat(
          snapshot.repository, "@", snapshot.commit, " has ",
          found == there.end() ? "no " : "another ", file.path(),
          " for this worker than for the coordinator; let both use the same HF_ENDPOINT"));
    }
    chosen.files.push_back(*found->second);
    chosen.files.back().digest = file.digest();
  }
  return chosen;
}

}  // namespace

bool HubModels::IsThere(const v1::Input& input, const std::string& snapshot, CancelToken& token) {
  return std::all_of(input.files().begin(), input.files().end(), [&](const v1::File& file) {
    const std::string path = JoinPath(snapshot, file.path());
    std::error_code error;
    if (std::filesystem::file_size(path, error) != static_cast<std::uintmax_t>(file.size_bytes()) ||
        error) {
      return false;
    }
    const absl::StatusOr<std::string> digest = digests_.Digest(path, token);
    return digest.ok() && *digest == file.digest();
  });
}

absl::StatusOr<std::string> HubModels::Fetch(const v1::Input& input, CancelToken& token,
                                             const Report& report) {
  const HubReference reference{input.hub_repository(), input.hub_commit()};
  if (!IsCommit(reference.revision) || environment_.cache.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "there is no place for ", reference.repository, ": set HF_HOME to a directory"));
  }
  const std::string snapshot =
      downloader_.cache().SnapshotPath(reference.repository, reference.revision);
  if (IsThere(input, snapshot, token)) return snapshot;
  const auto cancelled = [&token] { return token.cancelled(); };
  if (report) report(absl::StrCat("fetching ", reference.repository));
  ASSIGN_OR_RETURN(const HubSnapshot there, HubClient(environment_, cancelled).Describe(reference));
  ASSIGN_OR_RETURN(const HubSnapshot chosen, Choose(there, input));
  HubDownloadHooks hooks;
  hooks.cancelled = cancelled;
  hooks.digest_of = [&](const std::string& path) { return digests_.Digest(path, token); };
  hooks.fetched = [&](const std::string& path, const std::string& digest) {
    digests_.Remember(path, digest);
  };
  if (report) {
    hooks.progress = [&](std::int64_t done, std::int64_t total) {
      report(absl::StrCat("fetching ", reference.repository, ": ", FormatAmount(done, total)));
    };
  }
  RETURN_IF_ERROR(downloader_.Fetch(chosen, "", hooks));
  if (report) report("loading");
  return snapshot;
}

}  // namespace offshoot::worker
