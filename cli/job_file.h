// From a job file on this machine to a job at the coordinator: paths made absolute, data uploaded,
// a base model that the coordinator cannot see uploaded and registered.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/upload.h"
#include "common/job_spec.h"

namespace offshoot::cli {

// Reads and validates; relative paths become absolute (of the file's directory), ~/ is resolved,
// and a job without a name gets the file's. INVALID_ARGUMENT lists all faults, local files that are
// not there among them.
absl::StatusOr<JobSpec> LoadJobFile(const std::string& path);
// The same for bytes at hand.
absl::StatusOr<JobSpec> LoadJobText(const std::string& yaml, const std::string& path);

// Uploads data sets; the spec that comes back names them by digest.
absl::StatusOr<JobSpec> UploadDatasets(Client& client, JobSpec spec,
                                       const UploadProgress& progress);

// Submits; when the coordinator cannot read a local base model or adapter, uploads it and submits
// again. Gives the job's id.
absl::StatusOr<std::string> SubmitSpec(Client& client, JobSpec spec, const std::string& request_id,
                                       const UploadProgress& progress);

}  // namespace offshoot::cli
