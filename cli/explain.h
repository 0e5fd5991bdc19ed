// What a job will need, before it is submitted: the trainer's own check (preflight), run here on a
// local base model and local data. Thread-safe.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/job_spec.h"

namespace offshoot::cli {

struct ExplainOptions {
  std::string program_directory;  // where offshoot-trainer is
};

// The answer in lines; says what could not be known. An error is what preflight refuses the job for
// (INVALID_ARGUMENT), or that the trainer cannot be run.
absl::StatusOr<std::string> ExplainJob(const JobSpec& spec, const ExplainOptions& options);

}  // namespace offshoot::cli
