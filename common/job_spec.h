// The job file as a value: what a user asks for, parsed and validated. Pure functions, thread-safe.
//
// One table (job_spec_table.h) gives each key its type, range, default, unit and meaning; it drives
// parsing, formatting, the trainer's spec and docs/job-file.md. Parsing reads no file and no clock:
// the command line and the coordinator come to the same answer.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot {

inline constexpr std::size_t kMaxJobFileBytes = 256 << 10;

struct DatasetSpec {
  std::string path;           // a path, or sha256:<digest> of an uploaded artifact
  std::string type = "chat";  // chat, completion, text, pretokenized
  std::string name = {};      // what messages call it; empty: the path
  bool operator==(const DatasetSpec&) const = default;
};

struct ResourcesSpec {
  std::int64_t ranks = 1;
  std::int64_t min_ranks = 0;  // 0: ranks
  std::int64_t max_ranks = 0;  // 0: ranks
  std::string device = "any";  // any, cpu, cuda
  std::vector<std::string> gpu_models;
  std::int64_t min_memory_bytes = 0;          // of each device
  std::map<std::string, std::string> labels;  // of the worker
  bool operator==(const ResourcesSpec&) const = default;
};

struct SyncSpec {
  std::int64_t local_steps = 0;  // 0: `sync: every_step`
  double outer_learning_rate = 1;
  double outer_momentum = 0.5;
  bool operator==(const SyncSpec&) const = default;
};

struct PublishSpec {
  std::string name;                                // empty: the job's name
  std::vector<std::string> formats = {"adapter"};  // adapter, merged, gguf
  std::string gguf_type = "BF16";                  // BF16, F16, Q8_0
  std::vector<std::string> push_to = {};           // directories of the coordinator, org/name
  bool push_private = true;                        // what is made on a hub
  bool operator==(const PublishSpec&) const = default;
};

// Field names are the file's keys; a unit is added where the key has one. The defaults are here.
// `per_device_train_batch_size: auto`.
inline constexpr std::int64_t kAutomaticRows = 0;

struct JobSpec {
  // Who and what.
  std::string name;
  std::string team = "default";
  std::string queue = "default";
  std::int64_t priority = 0;
  std::map<std::string, std::string> labels;

  // Base model and data.
  std::string base_model;
  std::string base_model_id;  // empty: not given
  std::string init_adapter;   // empty: a new adapter
  std::vector<DatasetSpec> datasets;
  double val_set_size = 0;  // below 1: a fraction; from 1: rows
  std::int64_t sequence_len = 1024;
  bool sample_packing = false;
  bool group_by_length = false;
  bool shuffle = true;

  // Adapter.
  std::string dtype = "bfloat16";  // of the base: float32, bfloat16
  bool load_in_4bit = false;       // the base's linear layers in NF4
  bool load_in_8bit = false;       // in int8
  std::int64_t lora_r = 16;
  double lora_alpha = 32;
  double lora_dropout = 0;
  std::vector<std::string> lora_target_modules = {"all-linear"};
  bool use_rslora = false;

  // Optimizer.
  std::string optimizer = "adamw";
  double learning_rate = 2e-4;
  double weight_decay = 0;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_epsilon = 1e-8;
  std::string lr_scheduler_type = "linear";  // constant, linear, cosine
  std::int64_t warmup_steps = 0;
  double warmup_ratio = 0;
  double max_grad_norm = 1;  // 0: no clipping

  // How long and how much.
  double num_train_epochs = 1;
  std::int64_t max_steps = 0;                    // 0: num_train_epochs decides
  std::int64_t per_device_train_batch_size = 8;  // or kAutomaticRows
  std::int64_t gradient_accumulation_steps = 1;
  bool gradient_checkpointing = false;
  std::string recompute_granularity = "full";  // selective
  std::int64_t logging_steps = 1;
  std::int64_t save_steps = 50;
  std::int64_t save_total_limit = 2;
  std::int64_t eval_steps = 0;  // 0: at the end only
  std::int64_t seed = 42;
  bool reproducible = true;              // not given: true for one rank, false for several
  std::int64_t max_runtime_seconds = 0;  // 0: no limit

  ResourcesSpec resources;
  SyncSpec sync;  // of several ranks
  PublishSpec publish;

  bool operator==(const JobSpec&) const = default;
};

// One thing wrong with a job file.
struct SpecFault {
  int line = 0;                  // from 1; 0: concerns the file as a whole
  std::string key;               // as written, dotted below the top: resources.ranks; may be empty
  std::string message;           // the value given, what is wrong with it, and the remedy
  std::string ToString() const;  // "line 7: lora_r: ..."
  bool operator==(const SpecFault&) const = default;
};

struct JobSpecResult {
  std::optional<JobSpec> spec;    // set exactly when there are no faults
  std::vector<SpecFault> faults;  // by line; at most kMaxSpecFaults
};

inline constexpr std::size_t kMaxSpecFaults = 64;

// Never throws, whatever the bytes are.
JobSpecResult CheckJobSpec(absl::string_view yaml);
// The same with all faults in one INVALID_ARGUMENT, a line each.
absl::StatusOr<JobSpec> ParseJobSpec(absl::string_view yaml);

// The canonical job file of a spec: parsed again it gives an equal spec, and equal specs give equal
// bytes. Keys at their default are left out.
std::string FormatJobSpec(const JobSpec& spec);
// DigestOf(FormatJobSpec(spec)): comments, order and spelled-out defaults do not change it.
std::string SpecDigest(const JobSpec& spec);

// How a base model, data set or adapter is named.
enum class ReferenceKind {
  kPath,    // begins with '/', './', '../' or '~/', or ends in .gguf or .jsonl
  kDigest,  // sha256:<64 hex digits>
  kName,    // a registered name, or org/name[@revision]
};
ReferenceKind ClassifyReference(absl::string_view reference);

}  // namespace offshoot
