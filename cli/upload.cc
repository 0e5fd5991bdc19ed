#include "cli/upload.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/model_files.h"
#include "common/status_macros.h"

namespace offshoot::cli {
namespace {

constexpr std::size_t kPieceBytes = 1 << 20;  // of one message, the API's bound

struct OpenFile {
  explicit OpenFile(int descriptor) : descriptor(descriptor) {}
  OpenFile(const OpenFile&) = delete;
  ~OpenFile() {
    if (descriptor >= 0) close(descriptor);
  }
  int descriptor;
};

// One stream, from where an earlier one stopped.
absl::Status SendOnce(Client& client, const std::string& path, const FileEntry& file,
                      const UploadProgress& progress, bool& progressed) {
  v1::GetUploadOffsetRequest question;
  question.set_digest(file.digest);
  question.set_size_bytes(file.size_bytes);
  grpc::ClientContext question_context;
  v1::GetUploadOffsetResponse there;
  RETURN_IF_ERROR(
      FromGrpcStatus(client.cluster().GetUploadOffset(&question_context, question, &there)));
  if (there.complete()) return absl::OkStatus();

  OpenFile open_file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (open_file.descriptor < 0) return ErrnoStatus(errno, absl::StrCat("cannot open ", path));
  grpc::ClientContext context;
  v1::UploadArtifactResponse response;
  const auto stream = client.cluster().UploadArtifact(&context, &response);
  v1::UploadArtifactRequest message;
  message.set_digest(file.digest);
  message.set_size_bytes(file.size_bytes);
  message.set_offset(there.offset());
  std::int64_t offset = there.offset();
  std::string piece(kPieceBytes, '\0');
  bool open_stream = stream->Write(message);
  message.Clear();
  while (open_stream) {
    const ssize_t got = pread(open_file.descriptor, piece.data(), piece.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      context.TryCancel();
      return ErrnoStatus(errno, absl::StrCat("cannot read ", path));
    }
    if (got == 0) break;
    message.set_data(piece.data(), static_cast<std::size_t>(got));
    open_stream = stream->Write(message);
    if (!open_stream) break;
    offset += got;
    progressed = true;
    if (progress != nullptr) progress(path, offset, file.size_bytes);
  }
  stream->WritesDone();
  return FromGrpcStatus(stream->Finish());
}

}  // namespace

absl::StatusOr<FileEntry> SendFile(Client& client, const std::string& path,
                                   const std::string& digest, const UploadProgress& progress) {
  FileEntry file;
  file.digest = digest;
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot read ", path));
  }
  file.size_bytes = info.st_size;
  bool progressed = false;
  const absl::Status status =
      client.Retry([&] { return SendOnce(client, path, file, progress, progressed); },
                   [&] { return std::exchange(progressed, false); });
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("uploading ", path, ": ", status.message()));
  }
  return file;
}

absl::StatusOr<FileEntry> UploadFile(Client& client, const std::string& path,
                                     const UploadProgress& progress) {
  ASSIGN_OR_RETURN(const std::string digest, DigestOfFile(path));
  return SendFile(client, path, digest, progress);
}

absl::StatusOr<std::vector<FileEntry>> UploadTree(Client& client, const std::string& path,
                                                  const UploadProgress& progress) {
  std::vector<FileEntry> files;
  if (!IsDirectory(path)) {
    ASSIGN_OR_RETURN(FileEntry file, UploadFile(client, path, progress));
    file.path = path.substr(path.rfind('/') + 1);
    files.push_back(std::move(file));
    return files;
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFilesBelow(path));
  for (const std::string& name : names) {
    if (!BelongsToModel(name)) continue;
    ASSIGN_OR_RETURN(FileEntry file, UploadFile(client, JoinPath(path, name), progress));
    file.path = name;
    files.push_back(std::move(file));
  }
  if (files.empty())
    return absl::NotFoundError(absl::StrCat(path, " holds no file of a model or adapter"));
  return files;
}

}  // namespace offshoot::cli
