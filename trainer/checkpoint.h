// Checkpoints: everything a run needs to go on as if it had never stopped.
//
//   checkpoints/step-00000020.tmp/   files written and synced, one after the other
//                                    manifest.json last (SHA-256 and size of each file)
//   checkpoints/step-00000020/       renamed, parent synced: now it exists
//
// A directory is a checkpoint when its name has no ".tmp" and a manifest whose digests hold;
// anything else is the trace of a kill and is removed or refused. Functions are thread-safe for
// different directories; errors are Error(kDiskFull), Error(kInternal) or, for a torn or foreign
// checkpoint, Error(kBadSpec), each naming the path.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/data/batch_plan.h"

namespace offshoot::trainer {

struct CheckpointState {
  std::int64_t step = 0;       // optimizer steps done
  DataCursor cursor;           // of the step that comes next
  std::int64_t tokens = 0;     // trained so far, over all ranks
  std::string data_digest;     // DataSplit::digest
  nlohmann::json identity;     // TrainingIdentity of the spec
  nlohmann::json environment;  // what reproducibility fixes: see TrainingEnvironment
};

// Flat, float32, in parameter order.
struct OptimizerTensors {
  at::Tensor first_moments;
  at::Tensor second_moments;
  at::Tensor outer_momentum;  // of local steps; undefined: there are none
};

struct Checkpoint {
  CheckpointState state;
  std::map<std::string, at::Tensor> adapter;  // PEFT names; float32; mapped from the file
  OptimizerTensors optimizer;
  std::string metrics_path;  // the metrics file as it was then
};

// What must stay the same for a resumed run to equal an uninterrupted one bit for bit.
// threads and world size, the instruction set that LibTorch uses here, LibTorch's version, ours,
// and the processor's word order of work: {"threads", "world_size", "instruction_set", "libtorch",
// "offshoot", "device"}.
nlohmann::json TrainingEnvironment(std::int64_t threads, std::int64_t world_size,
                                   const std::string& device);

// Writes root/step-<8 digits>; returns its path. An existing complete one of this step is kept.
// write_adapter fills the directory with adapter_model.safetensors (and its config).
std::string WriteCheckpoint(const std::string& root, const CheckpointState& state,
                            const std::function<void(const std::string&)>& write_adapter,
                            const OptimizerTensors& optimizer, const std::string& metrics_path);

// Checks every digest before anything is used.
Checkpoint ReadCheckpoint(const std::string& path);

// Throws Error(kBadSpec) naming each difference between what the checkpoint was made with and what
// this run would be. The environment counts only if reproducible.
void CheckResumable(const std::string& path, const CheckpointState& saved,
                    const CheckpointState& current, bool reproducible);

// Removes leftovers of kills (".tmp") and checkpoints of steps after `step`, which a run that
// begins there will make anew.
void RemoveStaleCheckpoints(const std::string& root, std::int64_t step);
// Keeps the newest `limit` (0: all), never less than one.
void PruneCheckpoints(const std::string& root, std::int64_t limit);

}  // namespace offshoot::trainer
