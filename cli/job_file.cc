#include "cli/job_file.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kNameLength = 100;

std::string AbsolutePath(const std::string& path, const fs::path& directory) {
  if (absl::StartsWith(path, "~/")) {
    const char* home = std::getenv("HOME");
    if (home != nullptr) return (fs::path(home) / path.substr(2)).lexically_normal().string();
  }
  return (directory / path).lexically_normal().string();
}

// A local path if it is written as one, or if something by that name lies beside the job file, as
// transformers has it.
void ResolveReference(std::string& reference, const fs::path& directory) {
  if (reference.empty()) return;
  const ReferenceKind kind = ClassifyReference(reference);
  if (kind == ReferenceKind::kDigest) return;
  const std::string path = AbsolutePath(reference, directory);
  if (kind == ReferenceKind::kPath || PathExists(path)) reference = path;
}

std::string NameFromPath(const std::string& path) {
  std::string name;
  for (const char c : fs::path(path).stem().string()) {
    const bool allowed =
        absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
    if (name.size() < kNameLength) name += allowed ? c : '-';
  }
  while (!name.empty() && !absl::ascii_isalnum(static_cast<unsigned char>(name[0]))) {
    name.erase(0, 1);
  }
  return name;
}

// Data sets and adapters that are not on this machine; a base model may be the coordinator's.
absl::Status CheckLocalFiles(const JobSpec& spec) {
  std::vector<std::string> faults;
  for (std::size_t i = 0; i < spec.datasets.size(); ++i) {
    const std::string& path = spec.datasets[i].path;
    if (ClassifyReference(path) == ReferenceKind::kDigest) continue;
    std::error_code error;
    if (!PathExists(path)) {
      faults.push_back(absl::StrCat("datasets[", i, "].path: ", path, " is not there"));
    } else if (IsDirectory(path)) {
      faults.push_back(
          absl::StrCat("datasets[", i, "].path: ", path, " is a directory; name a JSONL file"));
    } else if (fs::file_size(path, error) == 0 && !error) {
      faults.push_back(absl::StrCat("datasets[", i, "].path: ", path, " is empty"));
    }
  }
  if (ClassifyReference(spec.init_adapter) == ReferenceKind::kPath &&
      !IsDirectory(spec.init_adapter)) {
    faults.push_back(absl::StrCat("init_adapter: ", spec.init_adapter, " is not a directory"));
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(faults, "\n"));
}

// True if the coordinator's refusal is about this path, which is here.
bool CannotSee(const absl::Status& status, const std::string& path) {
  return ClassifyReference(path) == ReferenceKind::kPath &&
         absl::StrContains(status.message(), path) && PathExists(path);
}

// True if the coordinator's refusal is about one of these data sets.
bool Misses(const absl::Status& status, const std::map<std::string, std::string>& datasets) {
  return std::any_of(datasets.begin(), datasets.end(), [&](const auto& dataset) {
    return absl::StrContains(status.message(), dataset.first);
  });
}

// Gives the files below path a name at the coordinator that is made from their bytes.
absl::StatusOr<std::string> RegisterLocal(Client& client, const std::string& path,
                                          const std::string& base_model_id,
                                          const UploadProgress& progress) {
  ASSIGN_OR_RETURN(const std::vector<FileEntry> files, UploadTree(client, path, progress));
  v1::RegisterBaseModelRequest request;
  for (const FileEntry& file : files) {
    v1::File* entry = request.add_files();
    entry->set_path(file.path);
    entry->set_digest(file.digest);
    entry->set_size_bytes(file.size_bytes);
  }
  request.set_base_model_id(base_model_id);
  request.set_name(absl::StrCat("sha256-", DigestOfFiles(files).substr(7)));
  ASSIGN_OR_RETURN(const v1::BaseModel model,
                   client.Call(client.models(), &v1::Models::Stub::RegisterBaseModel, request));
  return model.name();
}

absl::StatusOr<std::string> Submit(Client& client, const JobSpec& spec,
                                   const std::string& request_id) {
  v1::SubmitJobRequest request;
  request.set_spec_yaml(FormatJobSpec(spec));
  request.set_request_id(request_id);
  ASSIGN_OR_RETURN(const v1::SubmitJobResponse response,
                   client.Call(client.jobs(), &v1::Jobs::Stub::SubmitJob, request));
  return response.job_id();
}

}  // namespace

absl::StatusOr<JobSpec> LoadJobText(const std::string& yaml, const std::string& path) {
  absl::StatusOr<JobSpec> spec = ParseJobSpec(yaml);
  if (!spec.ok()) {
    return absl::Status(spec.status().code(), absl::StrCat(path, ": ", spec.status().message()));
  }
  const fs::path directory = fs::absolute(path).parent_path();
  ResolveReference(spec->base_model, directory);
  ResolveReference(spec->init_adapter, directory);
  for (DatasetSpec& dataset : spec->datasets) {
    if (ClassifyReference(dataset.path) != ReferenceKind::kDigest) {
      dataset.path = AbsolutePath(dataset.path, directory);
    }
  }
  if (spec->name.empty()) spec->name = NameFromPath(path);
  if (const absl::Status status = CheckLocalFiles(*spec); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  }
  return spec;
}

absl::StatusOr<JobSpec> LoadJobFile(const std::string& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (!error && size > kMaxJobFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", size, " bytes; a job file has ", "at most ", kMaxJobFileBytes));
  }
  ASSIGN_OR_RETURN(const std::string yaml, ReadFile(path));
  return LoadJobText(yaml, path);
}

absl::StatusOr<DigestedJob> DigestDatasets(JobSpec spec) {
  DigestedJob job;
  for (DatasetSpec& dataset : spec.datasets) {
    if (ClassifyReference(dataset.path) == ReferenceKind::kDigest) continue;
    ASSIGN_OR_RETURN(const std::string digest, DigestOfFile(dataset.path));
    if (dataset.name.empty()) dataset.name = fs::path(dataset.path).filename().string();
    job.datasets[digest] = std::exchange(dataset.path, digest);
  }
  job.spec = std::move(spec);
  return job;
}

absl::StatusOr<std::string> SubmitJob(Client& client, const DigestedJob& job,
                                      const std::string& request_id,
                                      const UploadProgress& progress) {
  constexpr int kKindsOfInputs = 3;
  JobSpec spec = job.spec;
  absl::StatusOr<std::string> job_id = Submit(client, spec, request_id);
  // Any kind may be out of its sight; it names one input at a time.
  for (int round = 0; round < kKindsOfInputs && !job_id.ok(); ++round) {
    if (Misses(job_id.status(), job.datasets)) {
      for (const auto& [digest, path] : job.datasets) {
        RETURN_IF_ERROR(SendFile(client, path, digest, progress).status());
      }
    } else if (CannotSee(job_id.status(), spec.base_model)) {
      ASSIGN_OR_RETURN(spec.base_model,
                       RegisterLocal(client, spec.base_model, spec.base_model_id, progress));
    } else if (CannotSee(job_id.status(), spec.init_adapter)) {
      ASSIGN_OR_RETURN(spec.init_adapter, RegisterLocal(client, spec.init_adapter, "", progress));
    } else {
      return job_id;
    }
    job_id = Submit(client, spec, request_id);
  }
  return job_id;
}

}  // namespace offshoot::cli
