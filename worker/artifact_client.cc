#include "worker/artifact_client.h"

#include <fcntl.h>
#include <grpcpp/channel.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/grpc_status.h"
#include "common/status_macros.h"
#include "worker/descriptor.h"

namespace offshoot::worker {
namespace {

constexpr std::size_t kPieceBytes = 1 << 20;
constexpr absl::Duration kRpcSlack = absl::Seconds(60);

absl::Status WriteAll(int descriptor, absl::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t wrote = write(descriptor, data.data(), data.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return ErrnoStatus(errno, absl::StrCat("cannot write ", path));
    data.remove_prefix(static_cast<std::size_t>(wrote));
  }
  return absl::OkStatus();
}

std::int64_t FileSize(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 ? info.st_size : -1;
}

// A hard link where the file system allows it, else a copy.
absl::Status LinkOrCopy(const std::string& source, const std::string& destination) {
  if (link(source.c_str(), destination.c_str()) == 0) return absl::OkStatus();
  const Descriptor from(open(source.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from.valid()) return ErrnoStatus(errno, absl::StrCat("cannot open ", source));
  const Descriptor to(open(destination.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!to.valid()) return ErrnoStatus(errno, absl::StrCat("cannot create ", destination));
  std::string buffer(kPieceBytes, '\0');
  while (true) {
    const ssize_t got = read(from.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("cannot read ", source));
    if (got == 0) return absl::OkStatus();
    RETURN_IF_ERROR(WriteAll(
        to.get(), absl::string_view(buffer.data(), static_cast<std::size_t>(got)), destination));
  }
}

absl::Status CheckDigest(const v1::File& file, const std::string& path, absl::string_view source) {
  ASSIGN_OR_RETURN(const std::string digest, DigestOfFile(path));
  if (digest == file.digest()) return absl::OkStatus();
  unlink(path.c_str());
  return absl::DataLossError(absl::StrCat(
      "what ", source, " gave for ", file.path().empty() ? "the file" : file.path(),
      " has the digest ", digest, " instead of ", file.digest(), "; it was thrown away"));
}

}  // namespace

ArtifactClient::ArtifactClient(std::shared_ptr<grpc::Channel> channel,
                               ArtifactClientOptions options)
    : options_(options), stub_(v1::Cluster::NewStub(channel)) {}

void ArtifactClient::SetDeadline(grpc::ClientContext& context, std::int64_t bytes) const {
  const absl::Duration allowed =
      kRpcSlack +
      absl::Seconds(bytes / std::max<std::int64_t>(1, options_.slowest_bytes_per_second));
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(allowed));
}

absl::Status ArtifactClient::Retry(CancelToken& token,
                                   const std::function<absl::Status()>& attempt) {
  Backoff backoff(options_.backoff);
  int odd_failures = 0;
  while (true) {
    if (token.cancelled()) return absl::CancelledError("given up by request");
    const absl::Status status = attempt();
    if (token.cancelled() && !status.ok()) return absl::CancelledError("given up by request");
    switch (status.code()) {
      case absl::StatusCode::kUnavailable:
      case absl::StatusCode::kDeadlineExceeded:
      case absl::StatusCode::kAborted:  // another upload of the same bytes: they come all the same
        break;                          // until it passes
      case absl::StatusCode::kCancelled:
      case absl::StatusCode::kUnknown:
      case absl::StatusCode::kInternal:
      case absl::StatusCode::kOutOfRange:  // a lost offset: it is asked for anew
      case absl::StatusCode::kDataLoss:
      case absl::StatusCode::kResourceExhausted:
        if (++odd_failures >= options_.max_odd_failures) return status;
        break;
      default:
        return status;
    }
    if (!token.Sleep(backoff.Next())) return absl::CancelledError("given up by request");
  }
}

absl::Status ArtifactClient::Download(const v1::File& file, const std::string& destination,
                                      CancelToken& token) {
  if (!IsDigest(file.digest())) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", file.digest(), "\" is no digest: sha256:<64 hex digits> is"));
  }
  const std::string partial = destination + ".partial";
  RETURN_IF_ERROR(Retry(token, [&] { return FetchFromLocations(file, partial, token); }));
  RETURN_IF_ERROR(SyncFile(partial));
  if (rename(partial.c_str(), destination.c_str()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("cannot rename ", partial));
  }
  return absl::OkStatus();
}

absl::Status ArtifactClient::FetchFromLocations(const v1::File& file, const std::string& partial,
                                                CancelToken& token) {
  grpc::ClientContext context;
  SetDeadline(context, 0);
  const CancelToken::Scope scope(token, [&context] { context.TryCancel(); });
  v1::GetArtifactLocationsRequest request;
  request.set_digest(file.digest());
  v1::GetArtifactLocationsResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(stub_->GetArtifactLocations(&context, request, &response)));
  absl::Status last =
      absl::NotFoundError(absl::StrCat("no place that this worker can reach has ", file.digest()));
  for (const v1::ArtifactLocation& location : response.locations()) {
    absl::string_view path = location.uri();
    if (absl::ConsumePrefix(&path, "file://")) {
      const std::string source(path);
      // A path of another machine is simply not there; the next location is asked.
      if (FileSize(source) != file.size_bytes()) continue;
      unlink(partial.c_str());
      last = LinkOrCopy(source, partial);
      if (last.ok()) last = CheckDigest(file, partial, source);
      if (last.ok()) return last;
      // What is wrong may be linked to the shared file: never go on writing into it.
      unlink(partial.c_str());
    } else if (absl::StartsWith(location.uri(), "grpc:")) {
      return FetchFromCoordinator(file, partial, token);
    }
  }
  return last;
}

absl::Status ArtifactClient::FetchFromCoordinator(const v1::File& file, const std::string& partial,
                                                  CancelToken& token) {
  std::int64_t offset = std::max<std::int64_t>(0, FileSize(partial));
  if (offset > file.size_bytes()) {
    unlink(partial.c_str());
    offset = 0;
  }
  if (offset < file.size_bytes() || offset == 0) {
    const Descriptor out(open(partial.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (!out.valid()) return ErrnoStatus(errno, absl::StrCat("cannot create ", partial));
    grpc::ClientContext context;
    SetDeadline(context, file.size_bytes() - offset);
    const CancelToken::Scope scope(token, [&context] { context.TryCancel(); });
    v1::DownloadArtifactRequest request;
    request.set_digest(file.digest());
    request.set_offset(offset);
    const auto reader = stub_->DownloadArtifact(&context, request);
    v1::FileChunk chunk;
    absl::Status written;
    while (written.ok() && reader->Read(&chunk)) {
      if (chunk.offset() != offset ||
          offset + static_cast<std::int64_t>(chunk.data().size()) > file.size_bytes()) {
        written = absl::OutOfRangeError(
            absl::StrCat("the coordinator sent bytes of ", file.digest(), " out of order"));
        break;
      }
      written = WriteAll(out.get(), chunk.data(), partial);
      offset += static_cast<std::int64_t>(chunk.data().size());
    }
    if (!written.ok()) context.TryCancel();
    const grpc::Status finished = reader->Finish();
    RETURN_IF_ERROR(written);
    RETURN_IF_ERROR(FromGrpcStatus(finished));
  }
  if (offset != file.size_bytes()) {
    return absl::UnavailableError(absl::StrCat("only ", offset, " of ", file.size_bytes(),
                                               " bytes of ", file.digest(), " came"));
  }
  return CheckDigest(file, partial, "the coordinator");
}

absl::Status ArtifactClient::Upload(const v1::File& file, const std::string& source,
                                    const AttemptKey& key, CancelToken& token) {
  const absl::Status status = Retry(token, [&] { return UploadOnce(file, source, key, token); });
  // Fenced: the attempt is not ours any more.
  if (absl::IsFailedPrecondition(status)) return absl::AbortedError(status.message());
  return status;
}

absl::Status ArtifactClient::UploadOnce(const v1::File& file, const std::string& source,
                                        const AttemptKey& key, CancelToken& token) {
  std::int64_t offset = 0;
  {
    grpc::ClientContext context;
    SetDeadline(context, 0);
    const CancelToken::Scope scope(token, [&context] { context.TryCancel(); });
    v1::GetUploadOffsetRequest request;
    request.set_digest(file.digest());
    request.set_size_bytes(file.size_bytes());
    v1::GetUploadOffsetResponse response;
    RETURN_IF_ERROR(FromGrpcStatus(stub_->GetUploadOffset(&context, request, &response)));
    if (response.complete()) return absl::OkStatus();
    offset = std::clamp<std::int64_t>(response.offset(), 0, file.size_bytes());
  }
  const Descriptor in(open(source.c_str(), O_RDONLY | O_CLOEXEC));
  if (!in.valid()) return ErrnoStatus(errno, absl::StrCat("cannot open ", source));
  grpc::ClientContext context;
  SetDeadline(context, file.size_bytes() - offset);
  const CancelToken::Scope scope(token, [&context] { context.TryCancel(); });
  v1::UploadArtifactResponse response;
  const auto writer = stub_->UploadArtifact(&context, &response);
  v1::UploadArtifactRequest request;
  request.set_digest(file.digest());
  request.set_size_bytes(file.size_bytes());
  request.set_offset(offset);
  request.set_job_id(key.job_id.value());
  request.set_attempt(static_cast<std::int32_t>(key.attempt));
  bool open_stream = writer->Write(request);
  request.Clear();
  std::string buffer(kPieceBytes, '\0');
  while (open_stream && offset < file.size_bytes()) {
    const ssize_t got = pread(in.get(), buffer.data(), buffer.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      context.TryCancel();
      writer->Finish();
      return got < 0 ? ErrnoStatus(errno, absl::StrCat("cannot read ", source))
                     : absl::NotFoundError(absl::StrCat(source, " became shorter"));
    }
    request.set_data(buffer.data(), static_cast<std::size_t>(got));
    open_stream = writer->Write(request);
    offset += got;
  }
  writer->WritesDone();
  return FromGrpcStatus(writer->Finish());
}

}  // namespace offshoot::worker
