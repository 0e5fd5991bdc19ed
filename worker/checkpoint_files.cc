#include "worker/checkpoint_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/descriptor.h"

namespace offshoot::worker {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::size_t kMaxManifestBytes = 4 << 20;
constexpr std::size_t kMaxCheckpointFiles = 1000;

absl::StatusOr<v1::File> ReadManifestFile(const json& item, const std::string& directory) {
  const absl::Status wrong =
      absl::InternalError("a file of its manifest has no path, digest or size");
  if (!item.is_object() || !item.value("path", json()).is_string() ||
      !item.value("digest", json()).is_string() ||
      !item.value("size_bytes", json()).is_number_integer()) {
    return wrong;
  }
  v1::File file;
  file.set_path(item["path"].get<std::string>());
  file.set_digest(item["digest"].get<std::string>());
  file.set_size_bytes(item["size_bytes"].get<std::int64_t>());
  if (!IsSafeRelativePath(file.path()) || !IsDigest(file.digest())) return wrong;
  std::error_code error;
  const std::uintmax_t size = fs::file_size(JoinPath(directory, file.path()), error);
  if (error || size != static_cast<std::uintmax_t>(file.size_bytes())) {
    return absl::InternalError(
        absl::StrCat(file.path(), " is not there in the size that its manifest says"));
  }
  return file;
}

absl::StatusOr<v1::Checkpoint> ReadManifest(const CheckpointOnDisk& checkpoint,
                                            const std::string& work_directory,
                                            std::int32_t attempt) {
  if (!PathIsInside(checkpoint.path, work_directory)) {
    return absl::InternalError("it lies outside the work directory");
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(JoinPath(checkpoint.path, "manifest.json")));
  const json manifest = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (text.size() > kMaxManifestBytes || !manifest.is_object() ||
      !manifest.value("files", json()).is_array() ||
      manifest["files"].size() > kMaxCheckpointFiles ||
      manifest.value("step", json()) != checkpoint.step) {
    return absl::InternalError("its manifest.json is not one of this step");
  }
  v1::Checkpoint stored;
  stored.set_step(checkpoint.step);
  stored.set_attempt(attempt);
  for (const json& item : manifest["files"]) {
    ASSIGN_OR_RETURN(*stored.add_files(), ReadManifestFile(item, checkpoint.path));
  }
  v1::File* file = stored.add_files();
  file->set_path("manifest.json");
  file->set_digest(DigestOf(text));
  file->set_size_bytes(static_cast<std::int64_t>(text.size()));
  return stored;
}

}  // namespace

std::optional<CheckpointOnDisk> FindNewestCheckpoint(const std::string& work_directory) {
  std::error_code error;
  fs::directory_iterator directories(JoinPath(work_directory, "checkpoints"), error);
  std::optional<CheckpointOnDisk> newest;
  if (error) return newest;
  for (const fs::directory_entry& directory : directories) {
    const std::string name = directory.path().filename().string();
    absl::string_view number = name;
    std::int64_t step = 0;
    if (!absl::ConsumePrefix(&number, "step-") || !absl::SimpleAtoi(number, &step) ||
        !PathExists((directory.path() / "manifest.json").string())) {
      continue;
    }
    if (!newest.has_value() || step > newest->step) {
      newest = CheckpointOnDisk{step, directory.path().string()};
    }
  }
  return newest;
}

std::int64_t FindLastTrainedStep(const std::string& work_directory) {
  const absl::StatusOr<std::string> text =
      ReadFile(JoinPath(work_directory, "training_metrics.jsonl"));
  if (!text.ok()) return 0;
  std::size_t end = text->rfind('\n');
  while (end != std::string::npos && end > 0) {
    const std::size_t begin = text->rfind('\n', end - 1);
    const std::size_t from = begin == std::string::npos ? 0 : begin + 1;
    const json line = json::parse(text->substr(from, end - from), nullptr, false);
    if (line.is_object() && line.contains("step") && line["step"].is_number_integer()) {
      return line["step"].get<std::int64_t>();
    }
    end = begin;
  }
  return 0;
}

absl::StatusOr<v1::Checkpoint> ReadCheckpoint(const CheckpointOnDisk& checkpoint,
                                              const std::string& work_directory,
                                              std::int32_t attempt) {
  absl::StatusOr<v1::Checkpoint> stored = ReadManifest(checkpoint, work_directory, attempt);
  if (stored.ok()) return stored;
  return absl::InternalError(absl::StrCat("the checkpoint of step ", checkpoint.step, " (",
                                          checkpoint.path,
                                          ") cannot be used: ", stored.status().message()));
}

absl::Status WriteFileUnsynced(const std::string& path, absl::string_view data) {
  const std::string temporary = path + ".tmp";
  {
    const Descriptor file(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!file.valid()) return ErrnoStatus(errno, absl::StrCat("cannot create ", temporary));
    const ssize_t wrote = write(file.get(), data.data(), data.size());
    if (wrote != static_cast<ssize_t>(data.size())) {
      return ErrnoStatus(wrote < 0 ? errno : ENOSPC, absl::StrCat("cannot write ", temporary));
    }
  }
  if (rename(temporary.c_str(), path.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot rename ", temporary));
  }
  return absl::OkStatus();
}

}  // namespace offshoot::worker
