// What a worker is told to run: from a job's record to the trainer's spec. Pure, thread-safe.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/records.h"
#include "coordinator/session_messages.h"

namespace offshoot {

// The job's spec: as it was submitted, parsed again if the record came from the store.
absl::StatusOr<std::shared_ptr<const JobSpec>> SpecOf(const JobDefinition& definition);

// kTrain: this worker's part of the job's newest attempt. The job must have its inputs.
absl::StatusOr<AssignMessage> BuildAssignment(const JobRecord& job, WorkKind kind,
                                              const WorkerRecord& worker,
                                              const std::string& coordinator_version);

}  // namespace offshoot
