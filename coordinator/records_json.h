// Records as JSON text, the form in which the store keeps what it does not search by. Fields may be
// added; a reader takes the default for one that is absent, so that an older state directory opens.
// Pure, thread-safe. Decoders answer DATA_LOSS naming what could not be read.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/lifecycle.h"
#include "coordinator/records.h"

namespace offshoot {

std::string EncodeDefinition(const JobDefinition& definition);  // without spec_yaml and spec
absl::StatusOr<JobDefinition> DecodeDefinition(absl::string_view text);

std::string EncodeJob(const JobRecord& job);  // without definition and inputs
absl::Status DecodeJob(absl::string_view text, JobRecord* job);

std::string EncodeInputs(const JobInputs& inputs);
absl::StatusOr<JobInputs> DecodeInputs(absl::string_view text);

std::string EncodeEvent(const JobEventRecord& event);  // without job_id and sequence
absl::Status DecodeEvent(absl::string_view text, JobEventRecord* event);

std::string EncodeEffect(const Effect& effect);
absl::StatusOr<Effect> DecodeEffect(absl::string_view text);

std::string EncodeWorker(const WorkerRecord& worker);
absl::StatusOr<WorkerRecord> DecodeWorker(absl::string_view text);

std::string EncodeBaseModel(const BaseModelRecord& model);
absl::StatusOr<BaseModelRecord> DecodeBaseModel(absl::string_view text);

std::string EncodeDerivative(const DerivativeRecord& derivative);
absl::StatusOr<DerivativeRecord> DecodeDerivative(absl::string_view text);

}  // namespace offshoot
