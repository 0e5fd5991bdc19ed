// What one attempt trains: the spec JSON of docs/trainer-protocol.md as a value. The job file's
// keys keep their names; everything outside is checked here once, so that the rest of the trainer
// may rely on it. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "trainer/lora/lora_set.h"
#include "trainer/models/recomputed.h"
#include "trainer/optim/outer_step.h"
#include "trainer/optim/schedule.h"

namespace offshoot::trainer {

struct BaseModelRef {
  std::string path;      // a directory or a GGUF file, local
  std::string digest;    // "sha256:..."; may be empty when started by hand
  std::string id;        // hub name for the card and the adapter; empty: the digest names it
  std::string revision;  // the commit of that name; may be empty
};

struct DatasetRef {
  std::string path;
  std::string type;
  std::string digest;
  std::string name;  // what people call it; the card names it when it is a hub's org/name
};

struct TrainSpec {
  std::string job_id;
  std::int64_t attempt = 1;
  BaseModelRef base_model;
  std::vector<DatasetRef> datasets;
  std::string init_adapter;  // directory; empty: a new adapter
  std::string resume_from;   // checkpoint directory; empty: from the start
  std::string device = "cpu";
  std::int64_t threads = 1;
  std::int64_t device_memory_bytes = 0;  // this rank's part of the device's memory; 0: not known

  at::ScalarType dtype = at::kBFloat16;  // of the frozen base
  // load_in_4bit, load_in_8bit: how the base's linear layers are kept.
  Quantisation quantisation = Quantisation::kNone;
  LoraConfig lora;

  double learning_rate = 2e-4;
  double weight_decay = 0.0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  ScheduleKind lr_scheduler_type = ScheduleKind::kLinear;
  std::int64_t warmup_steps = 0;
  double warmup_ratio = 0.0;
  double max_grad_norm = 1.0;  // 0: no clipping

  double num_train_epochs = 1.0;
  std::int64_t max_steps = 0;  // 0: num_train_epochs decides
  // `auto`: the numbers below are the default's until memory_plan.h has chosen others.
  bool automatic_batch = false;
  std::int64_t per_device_train_batch_size = 8;
  std::int64_t gradient_accumulation_steps = 1;
  // gradient_checkpointing and its recompute_granularity, full or selective.
  Recomputed recomputed = Recomputed::kNothing;
  std::int64_t sequence_len = 1024;

  // sync: with local_steps 0 the ranks' gradients are summed in every step.
  std::int64_t local_steps = 0;
  OuterStepOptions outer;

  std::int64_t logging_steps = 1;
  std::int64_t save_steps = 50;       // 0: no checkpoint but on request
  std::int64_t save_total_limit = 2;  // 0: keep all
  std::int64_t eval_steps = 0;        // 0: only at the end
  std::uint64_t seed = 42;
  bool reproducible = true;
  bool publish_merged = false;
  std::string publish_gguf;  // BF16, F16 or Q8_0: also as GGUF; empty: not

  nlohmann::json lineage;   // written into offshoot.json as it is
  nlohmann::json resolved;  // all keys with defaults filled in, for the parts that read their own
};

// "float32" or "bfloat16"; throws Error(kBadSpec) naming any other word.
at::ScalarType ParseDtype(const std::string& name);

// Throws Error(kBadSpec): not an object, unknown keys (all of them named), a wrong type, a value
// out of range.
TrainSpec ParseTrainSpec(const nlohmann::json& document);
// Reads at most 16 MiB. Throws Error(kBadSpec) naming the path.
TrainSpec ReadTrainSpec(const std::string& path);

// gradient_checkpointing, and recompute_granularity where it is not full, as a spec and a
// checkpoint's identity say them.
Recomputed ReadRecomputed(const nlohmann::json& spec);
void WriteRecomputed(Recomputed recomputed, nlohmann::json& spec);

// The part of the spec that decides every number of the training: what a checkpoint must agree with
// to be resumed. Device, threads and paths are not in it.
nlohmann::json TrainingIdentity(const TrainSpec& spec);

}  // namespace offshoot::trainer
