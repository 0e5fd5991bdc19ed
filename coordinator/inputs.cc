#include "coordinator/inputs.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "common/trainer_spec.h"
#include "hub/cache.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxModelFiles = 4096;
constexpr std::size_t kMaxKnownKeys = 64;

// Without symbolic links and dots; empty where there is nothing.
std::string RealPath(const std::string& path) {
  char* const real = realpath(path.c_str(), nullptr);
  if (real == nullptr) return std::string();
  std::string text(real);
  std::free(real);
  return text;
}

// Of real paths.
bool IsBelow(const std::string& path, const std::string& root) {
  return absl::StartsWith(path, root) &&
         (path.size() == root.size() || root == "/" || path[root.size()] == '/');
}

// What a model directory is made of; weights in formats that are never read are left out.
bool IsModelFile(absl::string_view path) {
  static constexpr std::array<absl::string_view, 6> kEndings = {".json", ".safetensors", ".jinja",
                                                                ".txt",  ".model",       ".gguf"};
  const std::string name = std::filesystem::path(std::string(path)).filename().string();
  if (absl::StartsWith(path, ".") || absl::StrContains(path, "/.")) return false;
  if (absl::StartsWith(name, "LICENSE") || name == "README.md") return true;
  return std::any_of(kEndings.begin(), kEndings.end(),
                     [&](absl::string_view ending) { return absl::EndsWith(name, ending); });
}

absl::StatusOr<FileIdentity> Identify(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  return FileIdentity{
      path, static_cast<std::int64_t>(info.st_size),
      static_cast<std::int64_t>(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec,
      static_cast<std::uint64_t>(info.st_ino)};
}

}  // namespace

struct InputResolver::Pass {
  bool may_read = false;
  bool incomplete = false;  // a digest is not known and may not be computed
  ResolvedInputs resolved;
};

std::vector<std::string> InputResolver::RealRoots() const {
  std::vector<std::string> roots = allowed_roots_;
  if (!hub_cache_.empty()) roots.push_back(hub_cache_);
  for (std::string& root : roots) root = RealPath(root);
  std::erase(roots, "");
  return roots;
}

absl::Status InputResolver::CheckPath(absl::string_view what, const std::string& path) const {
  if (path.empty() || path.front() != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": '", path, "' is a relative path; give it in full"));
  }
  // The common case costs one look; below are roots that were not there, or elsewhere, at the start.
  if (const std::string real = RealPath(path);
      !real.empty() && std::any_of(real_roots_.begin(), real_roots_.end(),
                                   [&](const std::string& root) { return IsBelow(real, root); })) {
    return absl::OkStatus();
  }
  const bool in_cache = !hub_cache_.empty() && PathIsInside(path, hub_cache_);
  const bool inside =
      in_cache || std::any_of(allowed_roots_.begin(), allowed_roots_.end(),
                              [&](const std::string& root) { return PathIsInside(path, root); });
  if (!inside) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", path, " is not under a folder that this coordinator may read (",
                     allowed_roots_.empty() ? "none is" : absl::StrJoin(allowed_roots_, ", "),
                     "); upload it, or start the coordinator with --allowed-root"));
  }
  if (!PathExists(path)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": there is no file or directory ", path, " on the coordinator"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> InputResolver::DigestAt(const std::string& path, FileEntry* entry,
                                                    Pass* pass) const {
  ASSIGN_OR_RETURN(FileIdentity identity, Identify(path));
  entry->size_bytes = identity.size_bytes;
  ASSIGN_OR_RETURN(std::optional<std::string> known, store_.FindFileDigest(identity));
  if (known) return *known;
  if (!pass->may_read) {
    pass->incomplete = true;
    return std::string();
  }
  ASSIGN_OR_RETURN(std::string digest, DigestOfFile(path));
  ASSIGN_OR_RETURN(FileIdentity after, Identify(path));
  if (after != identity) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " changed while it was read; submit again when it is complete"));
  }
  pass->resolved.learned.push_back(FileDigest{identity, digest});
  return digest;
}

absl::Status InputResolver::AddPath(absl::string_view what, const std::string& path,
                                    InputRecord* input, Pass* pass) const {
  RETURN_IF_ERROR(CheckPath(what, path));
  input->shared_path = path;
  if (!IsDirectory(path)) {
    FileEntry entry;
    ASSIGN_OR_RETURN(entry.digest, DigestAt(path, &entry, pass));
    input->files.push_back(std::move(entry));
    input->digest = input->files.front().digest;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::vector<std::string> names, ListFilesBelow(path));
  std::erase_if(names, [](const std::string& name) { return !IsModelFile(name); });
  if (names.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", path, " holds no model file"));
  }
  if (names.size() > kMaxModelFiles) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", path, " holds ", names.size(),
                                                   " files; a model has at most ", kMaxModelFiles));
  }
  for (std::string& name : names) {
    const std::string file = JoinPath(path, name);
    RETURN_IF_ERROR(CheckPath(what, file));
    FileEntry entry;
    ASSIGN_OR_RETURN(entry.digest, DigestAt(file, &entry, pass));
    entry.path = std::move(name);
    input->files.push_back(std::move(entry));
  }
  input->digest = DigestOfFiles(input->files);
  return absl::OkStatus();
}

absl::Status InputResolver::AddArtifact(absl::string_view what, const std::string& digest,
                                        InputRecord* input) const {
  const std::optional<std::int64_t> size = artifacts_.Find(digest);
  if (!size) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", digest, " was not uploaded to this coordinator; upload it first"));
  }
  input->files.push_back(FileEntry{"", digest, *size});
  input->digest = digest;
  return absl::OkStatus();
}

// The Hugging Face cache first: what is whole there needs no network.
absl::Status InputResolver::AddHubModel(const std::string& reference, InputRecord* input,
                                        Pass* pass) const {
  HubReference named;
  const bool is_name = ParseHubReference(reference, &named);
  std::string missing;
  if (is_name && !hub_cache_.empty()) {
    const HubCache cache(hub_cache_);
    input->hub_repository = named.repository;
    input->hub_commit = cache.FindCommit(named);
    const std::string snapshot = cache.SnapshotPath(named.repository, input->hub_commit);
    if (!input->hub_commit.empty() && IsDirectory(snapshot)) {
      missing = MissingOfModel(snapshot);
      if (missing.empty()) return AddPath("base_model", snapshot, input, pass);
    }
  }
  if (!is_name || hub_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "base_model: '", reference,
        "' is neither a registered base model nor in the Hugging Face cache",
        hub_cache_.empty() ? "" : absl::StrCat(" ", hub_cache_),
        missing.empty() ? "" : absl::StrCat(" (", missing, " is missing there)"),
        "; register it, download it there, or give the path of its directory or GGUF file"));
  }
  if (!pass->may_read) {
    pass->incomplete = true;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(HubModel model, hub_->Describe(named));
  input->hub_repository = named.repository;
  input->hub_commit = std::move(model.commit);
  input->files = std::move(model.files);
  input->digest = DigestOfFiles(input->files);
  return absl::OkStatus();
}

absl::Status InputResolver::AddBaseModel(const std::string& reference, Pass* pass) const {
  InputRecord input;
  input.spec_pointer = "/base_model/path";
  switch (ClassifyReference(reference)) {
    case ReferenceKind::kPath:
      RETURN_IF_ERROR(AddPath("base_model", reference, &input, pass));
      break;
    case ReferenceKind::kDigest:
      RETURN_IF_ERROR(AddArtifact("base_model", reference, &input));
      break;
    case ReferenceKind::kName: {
      absl::StatusOr<BaseModelRecord> model = store_.GetBaseModel(reference);
      if (absl::IsNotFound(model.status())) {
        RETURN_IF_ERROR(AddHubModel(reference, &input, pass));
        break;
      }
      RETURN_IF_ERROR(model.status());
      input.files = model->files;
      input.shared_path = model->path;
      input.digest = model->digest;
      break;
    }
  }
  pass->resolved.inputs.inputs.push_back(std::move(input));
  return absl::OkStatus();
}

absl::Status InputResolver::AddDataset(std::size_t index, const std::string& reference,
                                       Pass* pass) const {
  InputRecord input;
  input.spec_pointer = absl::StrCat("/datasets/", index, "/path");
  const std::string what = absl::StrCat("datasets[", index, "].path");
  switch (ClassifyReference(reference)) {
    case ReferenceKind::kDigest:
      RETURN_IF_ERROR(AddArtifact(what, reference, &input));
      break;
    case ReferenceKind::kPath:
    case ReferenceKind::kName:
      RETURN_IF_ERROR(CheckPath(what, reference));
      if (IsDirectory(reference)) {
        return absl::InvalidArgumentError(
            absl::StrCat(what, ": ", reference, " is a directory; name a JSONL file"));
      }
      RETURN_IF_ERROR(AddPath(what, reference, &input, pass));
      break;
  }
  pass->resolved.inputs.inputs.push_back(std::move(input));
  return absl::OkStatus();
}

absl::Status InputResolver::AddInitAdapter(const std::string& reference, Pass* pass) const {
  if (reference.empty()) return absl::OkStatus();
  InputRecord input;
  input.spec_pointer = "/init_adapter/path";
  if (ClassifyReference(reference) == ReferenceKind::kPath) {
    RETURN_IF_ERROR(AddPath("init_adapter", reference, &input, pass));
  } else {
    const absl::StatusOr<DerivativeRecord> derivative =
        store_.GetDerivative(DerivativeId(reference));
    // The command line registers an adapter that it had to upload under a name made of its digest.
    const absl::StatusOr<BaseModelRecord> registered = store_.GetBaseModel(reference);
    if (absl::IsNotFound(derivative.status()) && absl::IsNotFound(registered.status())) {
      return absl::InvalidArgumentError(
          absl::StrCat("init_adapter: '", reference,
                       "' is neither a derivative's id, nor the path of an adapter's directory, "
                       "nor a registered name"));
    }
    if (!derivative.ok() && !registered.ok()) {
      return absl::IsNotFound(derivative.status()) ? registered.status() : derivative.status();
    }
    for (const FileEntry& file : derivative.ok() ? derivative->files : registered->files) {
      if (absl::StartsWith(file.path, "adapter_")) input.files.push_back(file);
    }
    input.digest = DigestOfFiles(input.files);
  }
  pass->resolved.inputs.inputs.push_back(std::move(input));
  return absl::OkStatus();
}

std::string InputResolver::KeyOf(const JobSpec& spec, const std::shared_ptr<const JobSpec>& shared,
                                 const std::vector<InputRecord>& inputs) const {
  std::vector<std::string> digests;
  for (const InputRecord& input : inputs) digests.push_back(input.digest);
  if (shared != nullptr) {
    absl::MutexLock lock(&mutex_);
    const auto known = known_keys_.find(shared.get());
    if (known != known_keys_.end() && known->second.digests == digests) return known->second.key;
  }
  const auto first_dataset = digests.begin() + 1;
  const std::vector<std::string> datasets(
      first_dataset, first_dataset + static_cast<std::ptrdiff_t>(spec.datasets.size()));
  std::string key = PreflightKey(spec, digests.front(), datasets,
                                 spec.init_adapter.empty() ? std::string() : digests.back());
  if (shared != nullptr) {
    absl::MutexLock lock(&mutex_);
    if (known_keys_.size() >= kMaxKnownKeys) known_keys_.clear();
    known_keys_[shared.get()] = KnownKey{shared, std::move(digests), key};
  }
  return key;
}

absl::Status InputResolver::RunPass(const JobSpec& spec,
                                    const std::shared_ptr<const JobSpec>& shared,
                                    Pass* pass) const {
  if (check_) RETURN_IF_ERROR(check_(spec));
  RETURN_IF_ERROR(AddBaseModel(spec.base_model, pass));
  for (std::size_t i = 0; i < spec.datasets.size(); ++i) {
    RETURN_IF_ERROR(AddDataset(i, spec.datasets[i].path, pass));
  }
  RETURN_IF_ERROR(AddInitAdapter(spec.init_adapter, pass));
  if (pass->incomplete) return absl::OkStatus();
  JobInputs& inputs = pass->resolved.inputs;
  inputs.preflight_key = KeyOf(spec, shared, inputs.inputs);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<ResolvedInputs>> InputResolver::TryResolve(
    const std::shared_ptr<const JobSpec>& spec) const {
  Pass pass;
  RETURN_IF_ERROR(RunPass(*spec, spec, &pass));
  if (pass.incomplete) return std::nullopt;
  return std::move(pass.resolved);
}

absl::StatusOr<ResolvedInputs> InputResolver::Resolve(const JobSpec& spec) const {
  Pass pass;
  pass.may_read = true;
  RETURN_IF_ERROR(RunPass(spec, nullptr, &pass));
  return std::move(pass.resolved);
}

std::optional<std::string> InputResolver::FindKnownFile(const std::string& digest) const {
  const absl::StatusOr<std::vector<FileIdentity>> files = store_.FindFilesByDigest(digest);
  if (!files.ok()) return std::nullopt;
  for (const FileIdentity& file : *files) {
    const absl::StatusOr<FileIdentity> present = Identify(file.path);
    if (present.ok() && *present == file && CheckPath("file", file.path).ok()) return file.path;
  }
  return std::nullopt;
}

absl::StatusOr<std::vector<FileEntry>> InputResolver::DescribeModelPath(
    const std::string& path, std::vector<FileDigest>* learned) const {
  Pass pass;
  pass.may_read = true;
  InputRecord input;
  RETURN_IF_ERROR(AddPath("path", path, &input, &pass));
  *learned = std::move(pass.resolved.learned);
  return std::move(input.files);
}

}  // namespace offshoot
