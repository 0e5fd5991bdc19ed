#include "cli/pull.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/status_macros.h"

namespace offshoot::cli {
namespace {

namespace fs = std::filesystem;

// Appends what is missing of one file. A file that got too long, or whose digest is wrong at the
// end, is begun anew by the caller.
absl::Status DownloadRest(Client& client, const std::string& derivative_id, const v1::File& file,
                          const std::string& path, bool& progressed) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot create ", path));
  std::int64_t offset = lseek(descriptor, 0, SEEK_END);
  if (offset > file.size_bytes()) {
    if (ftruncate(descriptor, 0) != 0) offset = -1;
    offset = offset < 0 ? offset : 0;
  }
  absl::Status status;
  if (offset < 0) status = ErrnoStatus(errno, absl::StrCat("cannot write ", path));
  if (status.ok() && offset < file.size_bytes()) {
    grpc::ClientContext context;
    v1::DownloadFileRequest request;
    request.set_derivative_id(derivative_id);
    request.set_path(file.path());
    request.set_offset(offset);
    const auto stream = client.models().DownloadFile(&context, request);
    v1::FileChunk chunk;
    while (status.ok() && stream->Read(&chunk)) {
      const auto bytes = static_cast<std::int64_t>(chunk.data().size());
      if (chunk.offset() != offset || offset + bytes > file.size_bytes()) {
        status = absl::DataLossError(
            absl::StrCat("the coordinator sent bytes of ", file.path(), " that do not fit there"));
        break;
      }
      if (pwrite(descriptor, chunk.data().data(), chunk.data().size(), offset) != bytes) {
        status = ErrnoStatus(errno, absl::StrCat("cannot write ", path));
        break;
      }
      offset += bytes;
      progressed = true;
    }
    if (!status.ok()) context.TryCancel();
    const absl::Status end = FromGrpcStatus(stream->Finish());
    if (status.ok()) status = end;
    if (status.ok() && offset < file.size_bytes()) {
      status = absl::UnavailableError(absl::StrCat(file.path(), " was cut short"));
    }
  }
  if (status.ok() && fsync(descriptor) != 0) {
    status = ErrnoStatus(errno, absl::StrCat("cannot sync ", path));
  }
  close(descriptor);
  return status;
}

absl::Status DownloadFile(Client& client, const std::string& derivative_id, const v1::File& file,
                          const std::string& path) {
  // A second round for what an earlier, interrupted pull may have left wrong.
  for (int round = 0; round < 2; ++round) {
    bool progressed = false;
    RETURN_IF_ERROR(
        client.Retry([&] { return DownloadRest(client, derivative_id, file, path, progressed); },
                     [&] { return std::exchange(progressed, false); }));
    ASSIGN_OR_RETURN(const std::string digest, DigestOfFile(path));
    if (digest == file.digest()) return absl::OkStatus();
    RETURN_IF_ERROR(RemoveTree(path));
  }
  return absl::DataLossError(absl::StrCat(file.path(), " of derivative ", derivative_id,
                                          " does not have the digest ", file.digest(),
                                          " that it was published with; it is not kept"));
}

bool IsEmptyDirectory(const std::string& directory) {
  std::error_code error;
  return fs::is_empty(directory, error) && !error;
}

// True if the directory holds these files, byte for byte, and no others.
bool HoldsExactly(const std::string& directory, const v1::Derivative& derivative) {
  const auto names = ListFilesBelow(directory);
  if (!names.ok() || names->size() != static_cast<std::size_t>(derivative.files_size())) {
    return false;
  }
  for (const v1::File& file : derivative.files()) {
    const auto digest = DigestOfFile(JoinPath(directory, file.path()));
    if (!digest.ok() || *digest != file.digest()) return false;
  }
  return true;
}

// Files below root that the derivative does not have.
absl::Status RemoveStrangers(const std::string& root, const v1::Derivative& derivative) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFilesBelow(root));
  for (const std::string& name : names) {
    bool known = false;
    for (const v1::File& file : derivative.files()) known = known || file.path() == name;
    if (!known) RETURN_IF_ERROR(RemoveTree(JoinPath(root, name)));
  }
  return absl::OkStatus();
}

absl::Status PutInPlace(const std::string& partial, const std::string& directory) {
  RETURN_IF_ERROR(SyncDirectory(partial));
  const std::string parent = fs::path(directory).parent_path().string();
  if (!PathExists(directory) || IsEmptyDirectory(directory)) {
    if (rename(partial.c_str(), directory.c_str()) != 0) {
      return ErrnoStatus(errno, absl::StrCat("cannot rename ", partial, " to ", directory));
    }
    return SyncDirectory(parent);
  }
  // Both change places in one step, so that there is a whole derivative at every moment.
  if (renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, directory.c_str(), RENAME_EXCHANGE) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot replace ", directory));
  }
  RETURN_IF_ERROR(SyncDirectory(parent));
  return RemoveTree(partial);
}

}  // namespace

absl::Status CheckPullTarget(const std::string& directory, Existing existing) {
  if (!PathExists(directory)) return absl::OkStatus();
  if (!IsDirectory(directory)) {
    return absl::FailedPreconditionError(absl::StrCat(directory, " is a file; name a directory"));
  }
  if (IsEmptyDirectory(directory)) return absl::OkStatus();
  if (existing == Existing::kReplace && PathExists(JoinPath(directory, "offshoot.json"))) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(directory, " is not empty; name another directory, or remove what is there"));
}

absl::StatusOr<v1::Derivative> GetDerivative(Client& client, const std::string& derivative_id) {
  v1::GetDerivativeRequest request;
  request.set_derivative_id(derivative_id);
  return client.Call(client.models(), &v1::Models::Stub::GetDerivative, request);
}

absl::Status PullDerivative(Client& client, const v1::Derivative& derivative,
                            const std::string& directory_given, Existing existing) {
  std::string directory = fs::absolute(directory_given).lexically_normal().string();
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
  for (const v1::File& file : derivative.files()) {
    if (!IsSafeRelativePath(file.path())) {
      return absl::DataLossError(absl::StrCat("the coordinator names a file \"", file.path(),
                                              "\", which would lie outside ", directory));
    }
  }
  if (IsDirectory(directory) && HoldsExactly(directory, derivative)) return absl::OkStatus();
  RETURN_IF_ERROR(CheckPullTarget(directory, existing));
  const std::string partial = directory + ".partial";
  RETURN_IF_ERROR(MakeDirectories(partial));
  RETURN_IF_ERROR(RemoveStrangers(partial, derivative));
  for (const v1::File& file : derivative.files()) {
    const std::string path = JoinPath(partial, file.path());
    RETURN_IF_ERROR(MakeDirectories(fs::path(path).parent_path().string()));
    RETURN_IF_ERROR(DownloadFile(client, derivative.derivative_id(), file, path));
  }
  return PutInPlace(partial, directory);
}

}  // namespace offshoot::cli
