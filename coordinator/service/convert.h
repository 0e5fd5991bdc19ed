// The door between protobuf and the coordinator's own values. Pure, thread-safe. What comes from
// outside is checked here, once: INVALID_ARGUMENT names the field and its bound.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/controller.h"
#include "coordinator/outputs.h"
#include "coordinator/records.h"
#include "coordinator/session_messages.h"
#include "offshoot/v1/cluster.pb.h"
#include "offshoot/v1/jobs.pb.h"
#include "offshoot/v1/models.pb.h"

namespace offshoot {

inline constexpr int kMaxFilesPerMessage = 10'000;

v1::Job ToProto(const JobRecord& job, const JobOverlay& overlay, bool whole);
v1::JobEvent ToProto(const JobEventRecord& event);
v1::StepMetrics ToProto(const StepRecord& step, std::int32_t attempt);
v1::Worker ToProto(const WorkerStatus& status);
v1::BaseModel ToProto(const BaseModelRecord& model);
v1::Derivative ToProto(const DerivativeRecord& derivative);
v1::CoordinatorMessage ToProto(const SessionMessage& message);

absl::StatusOr<std::vector<FileEntry>> FilesFromProto(
    const google::protobuf::RepeatedPtrField<v1::File>& files);
absl::StatusOr<RegisterInfo> RegisterFromProto(const v1::Register& message);
absl::StatusOr<std::vector<HeldAttemptInfo>> HeldFromProto(
    const google::protobuf::RepeatedPtrField<v1::HeldAttempt>& held);
absl::StatusOr<AttemptReport> ReportFromProto(const v1::AttemptEvent& message);
absl::StatusOr<ContributionInfo> ContributionFromProto(const v1::Contribution& message);
StepRecord StepFromProto(const v1::StepMetrics& metrics);
ProgressRecord ProgressFromProto(const v1::Progress& progress);

}  // namespace offshoot
