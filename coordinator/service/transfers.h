// Files in and out: uploads of artifacts, downloads of artifacts and of derivatives' files.
#pragma once

#include <grpcpp/support/server_callback.h>

#include "coordinator/service/context.h"
#include "offshoot/v1/cluster.pb.h"
#include "offshoot/v1/models.pb.h"

namespace offshoot {

grpc::ServerReadReactor<v1::UploadArtifactRequest>* StartUpload(
    ServiceContext& context, v1::UploadArtifactResponse* response);

grpc::ServerWriteReactor<v1::FileChunk>* StartArtifactDownload(
    ServiceContext& context, const v1::DownloadArtifactRequest& request);

grpc::ServerWriteReactor<v1::FileChunk>* StartFileDownload(ServiceContext& context,
                                                           const v1::DownloadFileRequest& request);

}  // namespace offshoot
