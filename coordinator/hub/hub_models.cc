#include "coordinator/hub/hub_models.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "hub/client.h"
#include "hub/download.h"

namespace offshoot {
namespace {

constexpr std::int64_t kMaxSmallBytes = 512 << 20;  // of a commit's files that are no large files

// What the hub refuses is the job's fault, or this coordinator's surroundings': never the user's
// right to call.
absl::Status ForSubmit(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return absl::InvalidArgumentError(absl::StrCat("base_model: ", status.message()));
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kFailedPrecondition:
      return absl::FailedPreconditionError(absl::StrCat("base_model: ", status.message()));
    default:
      return status;
  }
}

// Files that the hub knows by git's name only, so that their SHA-256 must be computed.
absl::Status FetchSmallFiles(const HubEnvironment& environment, const HubReference& reference,
                             const HubSnapshot& snapshot, const std::vector<HubFile>& files) {
  HubSnapshot small{snapshot.repository, snapshot.commit, {}};
  std::int64_t bytes = 0;
  for (const HubFile& file : files) {
    if (!file.digest.empty()) continue;
    small.files.push_back(file);
    bytes += file.size_bytes;
  }
  if (bytes > kMaxSmallBytes) {
    return absl::FailedPreconditionError(
        absl::StrCat(snapshot.repository, " holds ", bytes,
                     " bytes of files that its hub has no SHA-256 of; no model has so many"));
  }
  return HubDownloader(environment).Fetch(small, reference.revision, {});
}

}  // namespace

absl::StatusOr<HubModel> HubModels::Describe(const HubReference& reference) {
  const auto find = [&](const std::string& commit) -> std::optional<HubModel> {
    absl::MutexLock lock(&mutex_);
    const auto found = described_.find(absl::StrCat(reference.repository, "@", commit));
    return found == described_.end() ? std::nullopt : std::optional<HubModel>(found->second);
  };
  if (auto known = find(reference.revision)) return *std::move(known);
  const auto snapshot = HubClient(environment_, nullptr).Describe(reference);
  if (!snapshot.ok()) return ForSubmit(snapshot.status());
  if (auto known = find(snapshot->commit)) return *std::move(known);
  const auto files = SelectModelFiles(*snapshot);
  if (!files.ok()) return ForSubmit(files.status());
  if (const absl::Status status = FetchSmallFiles(environment_, reference, *snapshot, *files);
      !status.ok()) {
    return ForSubmit(status);
  }
  const HubCache cache(environment_.cache);
  HubModel model;
  model.commit = snapshot->commit;
  for (const HubFile& file : *files) {
    FileEntry entry{file.path, file.digest, file.size_bytes};
    if (entry.digest.empty()) {
      ASSIGN_OR_RETURN(entry.digest,
                       DigestOfFile(JoinPath(cache.SnapshotPath(reference.repository, model.commit),
                                             file.path)));
    }
    model.files.push_back(std::move(entry));
  }
  absl::MutexLock lock(&mutex_);
  if (described_.size() >= kMaxRemembered) described_.clear();
  described_[absl::StrCat(reference.repository, "@", model.commit)] = model;
  return model;
}

}  // namespace offshoot
