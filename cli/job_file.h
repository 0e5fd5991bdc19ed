// From a job file on this machine to a job at the coordinator: paths made absolute, data uploaded,
// a base model that the coordinator cannot see uploaded and registered.
#pragma once

#include <map>
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

// A job that names its data sets by digest.
struct DigestedJob {
  JobSpec spec;
  std::map<std::string, std::string> datasets;  // digest -> path on this machine
};
absl::StatusOr<DigestedJob> DigestDatasets(JobSpec spec);

// Submits; when the coordinator has not got a data set or cannot read a local base model or
// adapter, uploads it and submits again. Gives the job's id.
absl::StatusOr<std::string> SubmitJob(Client& client, const DigestedJob& job,
                                      const std::string& request_id,
                                      const UploadProgress& progress);

}  // namespace offshoot::cli
