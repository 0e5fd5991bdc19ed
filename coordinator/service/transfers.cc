#include "coordinator/service/transfers.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/service/convert.h"
#include "coordinator/service/pull_stream.h"

namespace offshoot {
namespace {

class Upload : public grpc::ServerReadReactor<v1::UploadArtifactRequest>,
               public std::enable_shared_from_this<Upload> {
 public:
  Upload(ServiceContext& context, v1::UploadArtifactResponse* response)
      : context_(context), response_(response) {}

  void Begin() {
    self_ = shared_from_this();
    if (context_.counters.streams_open.fetch_add(1) >= kMaxStreams) {
      Finish(ToGrpcStatus(absl::ResourceExhaustedError(
          "the coordinator takes in as many uploads as it can; try again later")));
      return;
    }
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    // Disks may be slow: not on gRPC's thread. Only one task of an upload is under way.
    context_.pool.Post([self = shared_from_this(), ok] { self->Handle(ok); });
  }

  void OnDone() override {
    context_.counters.streams_open.fetch_sub(1);
    self_.reset();
  }

 private:
  void Handle(bool ok) {
    const absl::Status status = ok ? Take() : End();
    if (ok && status.ok()) {
      StartRead(&request_);
      return;
    }
    Finish(ToGrpcStatus(status));
  }

  absl::Status Take() {
    if (request_.data().size() > kChunkBytes) {
      return absl::InvalidArgumentError(absl::StrCat("a message carries at most ", kChunkBytes,
                                                     " bytes, not ", request_.data().size()));
    }
    if (upload_ == nullptr) {
      if (!request_.job_id().empty() &&
          !context_.controller.IsCurrentAttempt(JobId(request_.job_id()), request_.attempt())) {
        return absl::FailedPreconditionError(absl::StrCat("attempt ", request_.attempt(),
                                                          " of job ", request_.job_id(),
                                                          " is not its current one: stop it"));
      }
      digest_ = request_.digest();
      size_bytes_ = request_.size_bytes();
      ASSIGN_OR_RETURN(upload_,
                       context_.artifacts.BeginUpload(digest_, size_bytes_, request_.offset()));
    }
    return upload_->Append(request_.data());
  }

  absl::Status End() {
    if (upload_ == nullptr) {
      return absl::InvalidArgumentError("an upload begins with a message of digest and size");
    }
    RETURN_IF_ERROR(upload_->Finish());
    response_->set_digest(digest_);
    response_->set_size_bytes(size_bytes_);
    return absl::OkStatus();
  }

  ServiceContext& context_;
  v1::UploadArtifactResponse* response_;
  v1::UploadArtifactRequest request_;
  std::string digest_;
  std::int64_t size_bytes_ = 0;
  std::unique_ptr<ArtifactUpload> upload_;
  std::shared_ptr<Upload> self_;
};

// Chunks of one artifact from an offset on. An empty file is one empty chunk.
class Download : public PullStream<v1::FileChunk> {
 public:
  Download(ServiceContext& context, std::string digest, std::int64_t offset)
      : PullStream(context), digest_(std::move(digest)), offset_(offset) {}

  Pull Produce(v1::FileChunk* response, absl::Status* status) override {
    *status = Fill(response);
    if (!status->ok()) return Pull::kEnd;
    return done_ ? Pull::kEnd : Pull::kMessage;
  }

 protected:
  // Sets digest_; for a file of a derivative it must be looked up.
  virtual absl::Status Locate() { return absl::OkStatus(); }
  std::string digest_;

 private:
  // An artifact, or a file somewhere under the allowed roots that has the same bytes.
  absl::StatusOr<std::unique_ptr<ArtifactReader>> OpenBytes() {
    absl::StatusOr<std::unique_ptr<ArtifactReader>> reader =
        context_.artifacts.OpenArtifact(digest_);
    if (!absl::IsNotFound(reader.status())) return reader;
    const std::optional<std::string> path = context_.resolver.FindKnownFile(digest_);
    return path ? ArtifactReader::Open(*path) : std::move(reader);
  }

  absl::Status Fill(v1::FileChunk* response) {
    if (reader_ == nullptr) {
      RETURN_IF_ERROR(Locate());
      ASSIGN_OR_RETURN(reader_, OpenBytes());
      if (offset_ < 0 || offset_ > reader_->size_bytes()) {
        return absl::OutOfRangeError(absl::StrCat("offset ", offset_, " is not within the ",
                                                  reader_->size_bytes(), " bytes of ", digest_));
      }
    } else if (offset_ == reader_->size_bytes()) {
      done_ = true;
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(*response->mutable_data(), reader_->Read(offset_, kChunkBytes));
    response->set_offset(offset_);
    response->set_total_bytes(reader_->size_bytes());
    offset_ += static_cast<std::int64_t>(response->data().size());
    return absl::OkStatus();
  }

  std::int64_t offset_;
  bool done_ = false;
  std::unique_ptr<ArtifactReader> reader_;
};

class FileDownload : public Download {
 public:
  FileDownload(ServiceContext& context, const v1::DownloadFileRequest& request)
      : Download(context, "", request.offset()),
        derivative_id_(request.derivative_id()),
        path_(request.path()) {}

 protected:
  absl::Status Locate() override {
    ASSIGN_OR_RETURN(DerivativeRecord derivative,
                     context_.store.GetDerivative(DerivativeId(derivative_id_)));
    for (const FileEntry& file : derivative.files) {
      if (file.path != path_) continue;
      digest_ = file.digest;
      return absl::OkStatus();
    }
    return absl::NotFoundError(
        absl::StrCat("derivative ", derivative_id_, " has no file '", path_, "'"));
  }

 private:
  const std::string derivative_id_;
  const std::string path_;
};

}  // namespace

grpc::ServerReadReactor<v1::UploadArtifactRequest>* StartUpload(
    ServiceContext& context, v1::UploadArtifactResponse* response) {
  auto upload = std::make_shared<Upload>(context, response);
  upload->Begin();
  return upload.get();
}

grpc::ServerWriteReactor<v1::FileChunk>* StartArtifactDownload(
    ServiceContext& context, const v1::DownloadArtifactRequest& request) {
  return Download::Start(std::make_shared<Download>(context, request.digest(), request.offset()));
}

grpc::ServerWriteReactor<v1::FileChunk>* StartFileDownload(ServiceContext& context,
                                                           const v1::DownloadFileRequest& request) {
  return FileDownload::Start(std::make_shared<FileDownload>(context, request));
}

}  // namespace offshoot
