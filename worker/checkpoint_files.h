// Checkpoints as the trainer leaves them on disk (docs/trainer-protocol.md, "Work directory").
// Thread-safe; no state.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "offshoot/v1/cluster.pb.h"
#include "worker/attempt_machine.h"

namespace offshoot::worker {

// The newest complete checkpoint below work_directory: a directory without ".tmp" with a
// manifest.json in it. nullopt: none.
std::optional<CheckpointOnDisk> FindNewestCheckpoint(const std::string& work_directory);

// The step of the last whole line of work_directory/training_metrics.jsonl; 0: none.
std::int64_t FindLastTrainedStep(const std::string& work_directory);

// Its files as the manifest names them, and the manifest. Sizes are checked here, digests where
// the bytes are stored. INTERNAL naming the checkpoint when it is not what it should be.
absl::StatusOr<v1::Checkpoint> ReadCheckpoint(const CheckpointOnDisk& checkpoint,
                                              const std::string& work_directory,
                                              std::int32_t attempt);

// Replaces a file without syncing it: for what matters only while the machine keeps running.
absl::Status WriteFileUnsynced(const std::string& path, absl::string_view data);

}  // namespace offshoot::worker
