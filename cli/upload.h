// Local files become artifacts of the coordinator: known by digest, sent once, resumable.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"
#include "common/digest.h"

namespace offshoot::cli {

// Told now and then how far an upload is: path, bytes sent, bytes in all.
using UploadProgress = std::function<void(const std::string&, std::int64_t, std::int64_t)>;

// Sends the file with this digest unless the coordinator has it; gives digest and size (path is
// "").
absl::StatusOr<FileEntry> SendFile(Client& client, const std::string& path,
                                   const std::string& digest, const UploadProgress& progress);
// The same, with the digest found first.
absl::StatusOr<FileEntry> UploadFile(Client& client, const std::string& path,
                                     const UploadProgress& progress);
// A plain file (by its name), or every file below a directory that belongs to a model, by its path
// relative to it.
absl::StatusOr<std::vector<FileEntry>> UploadTree(Client& client, const std::string& path,
                                                  const UploadProgress& progress);

}  // namespace offshoot::cli
