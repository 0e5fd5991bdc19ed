#include "coordinator/hub/catalog.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "hub/environment.h"

namespace offshoot {
namespace {

constexpr int kPage = 500;
constexpr std::size_t kCommitDigits = 40;
constexpr absl::string_view kMergedSuffix = "-merged";
constexpr absl::string_view kMergedFolder = "merged/";

absl::Status NoRepository(const std::string& name) {
  return absl::NotFoundError(absl::StrCat("there is no model ", name, " here"));
}

absl::Status NoRevision(const std::string& name, const std::string& revision) {
  return absl::OutOfRangeError(absl::StrCat(name, " has no revision ", revision));
}

// What lies in merged/, as if it were a model of its own.
std::vector<FileEntry> MergedOf(const std::vector<FileEntry>& files) {
  std::vector<FileEntry> merged;
  for (const FileEntry& file : files) {
    if (!absl::StartsWith(file.path, kMergedFolder)) continue;
    merged.push_back(file);
    merged.back().path.erase(0, kMergedFolder.size());
  }
  return merged;
}

// A model that was registered out of the Hugging Face cache keeps the commit it has on its hub, by
// which adapters name it: ".../snapshots/<commit>".
std::string HubCommitOf(absl::string_view path) {
  absl::ConsumeSuffix(&path, "/");
  const std::size_t slash = path.rfind('/');
  if (slash == absl::string_view::npos) return "";
  const absl::string_view commit = path.substr(slash + 1);
  return absl::EndsWith(path.substr(0, slash), "/snapshots") && IsCommit(commit)
             ? std::string(commit)
             : "";
}

}  // namespace

std::string CommitOf(const std::vector<FileEntry>& files) {
  return DigestOfFiles(files).substr(sizeof("sha256:") - 1, kCommitDigits);
}

absl::Status HubCatalog::Refresh() {
  std::vector<DerivativeRecord> fresh;
  DerivativeFilter filter;
  filter.limit = kPage;
  for (bool more = true; more;) {
    ASSIGN_OR_RETURN(std::vector<DerivativeRecord> page, store_.ListDerivatives(filter));
    more = static_cast<int>(page.size()) == kPage;
    for (DerivativeRecord& derivative : page) {
      if (derivative.derivative_id == newest_) {
        more = false;
        break;
      }
      fresh.push_back(std::move(derivative));
    }
    if (more) filter.before = fresh.back().derivative_id;
  }
  for (auto it = fresh.rbegin(); it != fresh.rend(); ++it) {
    const Version version{it->derivative_id, CommitOf(it->files), CommitOf(MergedOf(it->files))};
    versions_[it->derivative_id.value()].push_back(version);
    versions_[absl::StrCat(it->team, "/", it->name)].push_back(version);
    newest_ = it->derivative_id;
  }
  return absl::OkStatus();
}

absl::StatusOr<CatalogSnapshot> HubCatalog::FindDerivative(const std::string& name, bool merged,
                                                           const std::string& revision) {
  DerivativeId wanted;
  {
    absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(Refresh());
    const auto found = versions_.find(name);
    if (found == versions_.end()) return NoRepository(name);
    for (const Version& version : found->second) {  // of equal ones the newest
      if (revision == "main" || revision == version.derivative_id.value() ||
          revision == (merged ? version.merged_commit : version.commit)) {
        wanted = version.derivative_id;
      }
    }
  }
  if (wanted.empty()) return NoRevision(name, revision);
  ASSIGN_OR_RETURN(DerivativeRecord derivative, store_.GetDerivative(wanted));
  CatalogSnapshot snapshot;
  snapshot.created = derivative.created;
  snapshot.files = merged ? MergedOf(derivative.files) : std::move(derivative.files);
  snapshot.team = derivative.team;
  if (snapshot.files.empty()) return NoRepository(absl::StrCat(name, kMergedSuffix));
  snapshot.commit = CommitOf(snapshot.files);
  return snapshot;
}

absl::StatusOr<CatalogSnapshot> HubCatalog::FindBase(const std::string& name,
                                                     const std::string& revision) {
  absl::StatusOr<BaseModelRecord> model = store_.GetBaseModel(name);
  // An older commit of what was pushed.
  if (model.ok() && !model->team.empty() && IsCommit(revision)) {
    const auto older = store_.GetBaseModel(absl::StrCat(name, "@", revision));
    if (older.ok()) model = older;
  }
  for (std::string after; absl::IsNotFound(model.status());) {
    ASSIGN_OR_RETURN(const std::vector<BaseModelRecord> page, store_.ListBaseModels(after, kPage));
    const auto found = std::find_if(page.begin(), page.end(), [&](const BaseModelRecord& one) {
      return one.base_model_id == name;
    });
    if (found != page.end()) model = *found;
    if (static_cast<int>(page.size()) < kPage) break;
    after = page.back().name;
  }
  RETURN_IF_ERROR(model.status());
  CatalogSnapshot snapshot;
  snapshot.created = model->created;
  snapshot.team = model->team;
  snapshot.pushed = !model->team.empty();
  snapshot.files = std::move(model->files);
  if (snapshot.files.size() == 1 && snapshot.files.front().path.empty()) {
    // One GGUF file, registered by itself.
    snapshot.files.front().path = "model.gguf";
  }
  snapshot.commit = HubCommitOf(model->path);
  if (snapshot.commit.empty()) snapshot.commit = CommitOf(snapshot.files);
  if (revision != "main" && revision != snapshot.commit) return NoRevision(name, revision);
  return snapshot;
}

absl::StatusOr<CatalogSnapshot> HubCatalog::Find(const std::string& repository,
                                                 const std::string& revision) {
  if (repository.empty()) return NoRepository(repository);
  absl::StatusOr<CatalogSnapshot> snapshot = FindDerivative(repository, false, revision);
  if (absl::IsNotFound(snapshot.status())) snapshot = FindBase(repository, revision);
  if (absl::string_view name = repository;
      absl::IsNotFound(snapshot.status()) && absl::ConsumeSuffix(&name, kMergedSuffix)) {
    snapshot = FindDerivative(std::string(name), true, revision);
  }
  if (absl::IsNotFound(snapshot.status())) return NoRepository(repository);
  if (snapshot.ok()) snapshot->repository = repository;
  return snapshot;
}

std::string HubCatalog::PathOf(const FileEntry& file) const {
  if (artifacts_.Find(file.digest)) return artifacts_.PathOf(file.digest);
  return resolver_.FindKnownFile(file.digest).value_or("");
}

}  // namespace offshoot
