#include "common/job_spec_table.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace offshoot {
namespace {

constexpr double kNone = std::numeric_limits<double>::infinity();
constexpr double kManySteps = 1e9;

template <typename Owner>
struct KeyRow {
  KeyInfo info;
  KeyField (*field)(Owner&);
};

template <auto Member>
KeyField Top(JobSpec& spec) {
  return &(spec.*Member);
}
template <auto Member>
KeyField Resource(JobSpec& spec) {
  return &(spec.resources.*Member);
}
template <auto Member>
KeyField Sync(JobSpec& spec) {
  return &(spec.sync.*Member);
}
template <auto Member>
KeyField Publish(JobSpec& spec) {
  return &(spec.publish.*Member);
}
template <auto Member>
KeyField Dataset(DatasetSpec& dataset) {
  return &(dataset.*Member);
}

// clang-format off
const std::vector<KeyRow<JobSpec>>& JobRows() {
  using J = JobSpec;
  using R = ResourcesSpec;
  using S = SyncSpec;
  using P = PublishSpec;
  using T = KeyType;
  static const auto* rows = new std::vector<KeyRow<JobSpec>>{
      {{.key = "name", .type = T::kName, .unit = "", .source = "Offshoot",
        .meaning = "What people call the job, and its derivative."},
       Top<&J::name>},
      {{.key = "team", .type = T::kName, .unit = "", .source = "Offshoot",
        .meaning = "Whose quota and share the job counts against."},
       Top<&J::team>},
      {{.key = "queue", .type = T::kName, .unit = "", .source = "Offshoot",
        .meaning = "One of the coordinator's queues: its priority is added to the job's, its limits "
                   "hold for the job."},
       Top<&J::queue>},
      {{.key = "priority", .type = T::kInteger, .unit = "", .source = "Offshoot",
        .meaning = "Higher is placed first.", .lowest = -100, .highest = 100},
       Top<&J::priority>},
      {{.key = "labels", .type = T::kLabels, .unit = "", .source = "Kubernetes",
        .meaning = "Texts of your own, shown with the job."},
       Top<&J::labels>},

      {{.key = "base_model", .type = T::kReference, .unit = "", .source = "Axolotl",
        .meaning = "The frozen model to start from: a Hugging Face directory, a GGUF file, a "
                   "registered name, `org/name@revision`, or `sha256:<digest>`. A leading `~/` is "
                   "your home directory.",
        .required = true},
       Top<&J::base_model>},
      {{.key = "base_model_id", .type = T::kModelId, .unit = "", .source = "Offshoot",
        .meaning = "The model's name on its hub, written into the adapter's config and the card. "
                   "Give it for a local base, or the adapter names only the digest."},
       Top<&J::base_model_id>},
      {{.key = "init_adapter", .type = T::kReference, .unit = "", .source = "Offshoot",
        .meaning = "A directory with a PEFT adapter to go on from, in place of a new one."},
       Top<&J::init_adapter>},
      {{.key = "val_set_size", .type = T::kNumber, .unit = "fraction or rows", .source = "Axolotl",
        .meaning = "Held-out rows, taken by a seeded split that never parts equal rows: a fraction "
                   "below 1, or a count.",
        .lowest = 0, .highest = 1e9, .preflight = true},
       Top<&J::val_set_size>},
      {{.key = "sequence_len", .type = T::kInteger, .unit = "tokens", .source = "Axolotl",
        .meaning = "Longest row; what is beyond it is cut off.",
        .lowest = 8, .highest = 1 << 20, .preflight = true},
       Top<&J::sequence_len>},
      {{.key = "sample_packing", .type = T::kTruth, .unit = "", .source = "Axolotl",
        .meaning = "Puts several rows into one sequence; they never attend to each other.",
        .preflight = true},
       Top<&J::sample_packing>},
      {{.key = "group_by_length", .type = T::kTruth, .unit = "", .source = "Hugging Face Trainer",
        .meaning = "Batches rows of like length, which saves padding.", .preflight = true},
       Top<&J::group_by_length>},
      {{.key = "shuffle", .type = T::kTruth, .unit = "", .source = "Offshoot",
        .meaning = "Another order each epoch, a function of seed and epoch.", .preflight = true},
       Top<&J::shuffle>},

      {{.key = "dtype", .type = T::kChoice, .unit = "", .source = "PyTorch",
        .meaning = "Of the frozen base. The adapter and the optimizer are always float32.",
        .choices = {"float32", "bfloat16"}, .preflight = true},
       Top<&J::dtype>},
      {{.key = "load_in_4bit", .type = T::kTruth, .unit = "", .source = "Axolotl",
        .meaning = "Keeps the base's linear layers in 4 bits while training (QLoRA): NF4 in blocks "
                   "of 64 with double quantisation, as bitsandbytes defines it. A merged model is "
                   "of the base's own weights.",
        .preflight = true},
       Top<&J::load_in_4bit>},
      {{.key = "load_in_8bit", .type = T::kTruth, .unit = "", .source = "Axolotl",
        .meaning = "The same in 8 bits: int8 with a scale per row. Not with `load_in_4bit`.",
        .preflight = true},
       Top<&J::load_in_8bit>},
      {{.key = "lora_r", .type = T::kInteger, .unit = "", .source = "PEFT",
        .meaning = "Rank of the adapter.", .lowest = 1, .highest = 4096, .preflight = true},
       Top<&J::lora_r>},
      {{.key = "lora_alpha", .type = T::kNumber, .unit = "", .source = "PEFT",
        .meaning = "The adapter's output is scaled by `lora_alpha / lora_r`.",
        .lowest = 0, .highest = 1e6, .above_lowest = true},
       Top<&J::lora_alpha>},
      {{.key = "lora_dropout", .type = T::kNumber, .unit = "", .source = "PEFT",
        .meaning = "Part of the adapter's inputs dropped in training.",
        .lowest = 0, .highest = 1, .below_highest = true},
       Top<&J::lora_dropout>},
      {{.key = "lora_target_modules", .type = T::kModuleList, .unit = "", .source = "PEFT",
        .meaning = "Linear layers that get an adapter: `all-linear` (every one but the head and "
                   "routers), `attention`, `mlp`, `experts`, names such as `q_proj`, a regular "
                   "expression over the whole path, or PEFT's parameters of fused experts, "
                   "`mlp.experts.gate_up_proj` and `mlp.experts.down_proj`. One that matches "
                   "nothing is an error.",
        .preflight = true},
       Top<&J::lora_target_modules>},
      {{.key = "use_rslora", .type = T::kTruth, .unit = "", .source = "PEFT",
        .meaning = "Scales by `lora_alpha / sqrt(lora_r)` instead."},
       Top<&J::use_rslora>},

      {{.key = "optimizer", .type = T::kChoice, .unit = "", .source = "Axolotl",
        .meaning = "AdamW with decoupled weight decay.", .choices = {"adamw"}, .preflight = true},
       Top<&J::optimizer>},
      {{.key = "learning_rate", .type = T::kNumber, .unit = "", .source = "Hugging Face Trainer",
        .meaning = "The highest one of the schedule.",
        .lowest = 0, .highest = 10, .above_lowest = true},
       Top<&J::learning_rate>},
      {{.key = "weight_decay", .type = T::kNumber, .unit = "", .source = "Hugging Face Trainer",
        .meaning = "Decoupled, on all adapter weights.", .lowest = 0, .highest = 10},
       Top<&J::weight_decay>},
      {{.key = "adam_beta1", .type = T::kNumber, .unit = "", .source = "Hugging Face Trainer",
        .meaning = "Decay of the mean of gradients.",
        .lowest = 0, .highest = 1, .below_highest = true},
       Top<&J::adam_beta1>},
      {{.key = "adam_beta2", .type = T::kNumber, .unit = "", .source = "Hugging Face Trainer",
        .meaning = "Decay of the mean of squared gradients.",
        .lowest = 0, .highest = 1, .below_highest = true},
       Top<&J::adam_beta2>},
      {{.key = "adam_epsilon", .type = T::kNumber, .unit = "", .source = "Hugging Face Trainer",
        .meaning = "Added to the denominator.", .lowest = 0, .highest = 1, .above_lowest = true},
       Top<&J::adam_epsilon>},
      {{.key = "lr_scheduler_type", .type = T::kChoice, .unit = "",
        .source = "Hugging Face Trainer",
        .meaning = "After the warm-up: `linear` and `cosine` fall to 0 at the last step.",
        .choices = {"constant", "linear", "cosine"}},
       Top<&J::lr_scheduler_type>},
      {{.key = "warmup_steps", .type = T::kInteger, .unit = "optimizer steps",
        .source = "Hugging Face Trainer",
        .meaning = "The learning rate rises linearly from 0 over these. Not with `warmup_ratio`.",
        .lowest = 0, .highest = kManySteps},
       Top<&J::warmup_steps>},
      {{.key = "warmup_ratio", .type = T::kNumber, .unit = "part of all steps",
        .source = "Hugging Face Trainer",
        .meaning = "The same as a part of all steps, rounded up.", .lowest = 0, .highest = 1},
       Top<&J::warmup_ratio>},
      {{.key = "max_grad_norm", .type = T::kNumber, .unit = "", .source = "Hugging Face Trainer",
        .meaning = "Gradients are scaled down to this L2 norm; 0 turns clipping off.",
        .lowest = 0, .highest = 1e9},
       Top<&J::max_grad_norm>},

      {{.key = "num_train_epochs", .type = T::kNumber, .unit = "epochs",
        .source = "Hugging Face Trainer",
        .meaning = "Passes over the data; a part of one is allowed.",
        .lowest = 0, .highest = 1e6, .above_lowest = true, .preflight = true},
       Top<&J::num_train_epochs>},
      {{.key = "max_steps", .type = T::kInteger, .unit = "optimizer steps",
        .source = "Hugging Face Trainer",
        .meaning = "Exactly so many steps, whatever `num_train_epochs` says; 0: the epochs decide.",
        .lowest = 0, .highest = kManySteps, .preflight = true},
       Top<&J::max_steps>},
      {{.key = "per_device_train_batch_size", .type = T::kInteger, .unit = "rows",
        .source = "Hugging Face Trainer",
        .meaning = "Rows (with packing: sequences) of one micro-batch on one rank; `auto`: as many "
                   "as fit (below).",
        .lowest = 1, .highest = 65536, .preflight = true},
       Top<&J::per_device_train_batch_size>},
      {{.key = "gradient_accumulation_steps", .type = T::kInteger, .unit = "micro-batches",
        .source = "Hugging Face Trainer",
        .meaning = "Micro-batches of one optimizer step. The loss is over all of their tokens; a "
                   "last partial accumulation is kept.",
        .lowest = 1, .highest = 65536, .preflight = true},
       Top<&J::gradient_accumulation_steps>},
      {{.key = "gradient_checkpointing", .type = T::kTruth, .unit = "",
        .source = "Hugging Face Trainer",
        .meaning = "Computes activations again in the backward pass: less memory, more time.",
        .preflight = true},
       Top<&J::gradient_checkpointing>},
      {{.key = "recompute_granularity", .type = T::kChoice, .unit = "", .source = "Megatron-LM",
        .meaning = "What `gradient_checkpointing` computes again: whole layers, or (`selective`) "
                   "only the inside of their feed-forward parts, which takes less time and keeps "
                   "more.",
        .choices = {"full", "selective"}, .preflight = true},
       Top<&J::recompute_granularity>},
      {{.key = "logging_steps", .type = T::kInteger, .unit = "optimizer steps",
        .source = "Hugging Face Trainer",
        .meaning = "A log line every so many steps. Metrics have every step.",
        .lowest = 1, .highest = kManySteps},
       Top<&J::logging_steps>},
      {{.key = "save_steps", .type = T::kInteger, .unit = "optimizer steps",
        .source = "Hugging Face Trainer",
        .meaning = "A checkpoint every so many steps: no more is repeated when a machine is lost.",
        .lowest = 1, .highest = kManySteps},
       Top<&J::save_steps>},
      {{.key = "save_total_limit", .type = T::kInteger, .unit = "checkpoints",
        .source = "Hugging Face Trainer", .meaning = "Checkpoints kept, newest first.",
        .lowest = 1, .highest = 1000},
       Top<&J::save_total_limit>},
      {{.key = "eval_steps", .type = T::kInteger, .unit = "optimizer steps",
        .source = "Hugging Face Trainer",
        .meaning = "Held-out loss every so many steps; 0: at the end only.",
        .lowest = 0, .highest = kManySteps},
       Top<&J::eval_steps>},
      {{.key = "seed", .type = T::kInteger, .unit = "", .source = "Hugging Face Trainer",
        .meaning = "Of the adapter's start, the dropout, the order and the split.",
        .lowest = 0, .highest = 9007199254740991.0, .preflight = true},
       Top<&J::seed>},
      {{.key = "reproducible", .type = T::kTruth, .unit = "", .source = "Offshoot",
        .meaning = "A resumed run equals one never interrupted, bit for bit. With several "
                   "`resources.ranks` the default is false."},
       Top<&J::reproducible>},
      {{.key = "max_runtime", .type = T::kDuration, .unit = "seconds, or 90s, 30m, 2h, 1d",
        .source = "Offshoot",
        .meaning = "The job is stopped after training so long, all attempts together; 0: no limit.",
        .lowest = 0, .highest = 366.0 * 86400},
       Top<&J::max_runtime_seconds>},

      {{.key = "resources.ranks", .type = T::kInteger, .unit = "devices", .source = "Offshoot",
        .meaning = "Trainer processes, one a device, placed all or none.",
        .lowest = 1, .highest = 1024},
       Resource<&R::ranks>},
      {{.key = "resources.min_ranks", .type = T::kInteger, .unit = "devices",
        .source = "Offshoot",
        .meaning = "Starts, and goes on, with as few as these where `ranks` are not to be had; 0: "
                   "never with fewer than `ranks`.",
        .lowest = 0, .highest = 1024},
       Resource<&R::min_ranks>},
      {{.key = "resources.max_ranks", .type = T::kInteger, .unit = "devices",
        .source = "Offshoot",
        .meaning = "Takes as many as these where nobody else waits for them; 0: never more than "
                   "`ranks`.",
        .lowest = 0, .highest = 1024},
       Resource<&R::max_ranks>},
      {{.key = "resources.device", .type = T::kChoice, .unit = "", .source = "Offshoot",
        .meaning = "The kind of device wanted.", .choices = {"any", "cpu", "cuda"}},
       Resource<&R::device>},
      {{.key = "resources.gpu_models", .type = T::kTextList, .unit = "", .source = "Offshoot",
        .meaning = "Only GPUs whose model is one of these, as `offshoot workers` shows it, or "
                   "contains one as a word: `H100` fits `NVIDIA H100 80GB HBM3`."},
       Resource<&R::gpu_models>},
      {{.key = "resources.min_memory", .type = T::kBytes, .unit = "bytes, or 512MiB, 8GiB",
        .source = "Offshoot", .meaning = "Only devices with at least so much memory; 0: any.",
        .lowest = 0, .highest = 0x1p50},
       Resource<&R::min_memory_bytes>},
      {{.key = "resources.labels", .type = T::kLabels, .unit = "", .source = "Kubernetes",
        .meaning = "Only workers that carry all of these labels."},
       Resource<&R::labels>},

      {{.key = "sync.local_steps", .type = T::kInteger, .unit = "optimizer steps",
        .source = "Offshoot",
        .meaning = "Each rank takes so many steps by itself before the ranks agree on one adapter "
                   "(docs/several-ranks.md); 0, or `sync: every_step`: gradients are summed in "
                   "every step.",
        .lowest = 0, .highest = 1e6, .preflight = true},
       Sync<&S::local_steps>},
      {{.key = "sync.outer_learning_rate", .type = T::kNumber, .unit = "", .source = "DiLoCo",
        .meaning = "Of the ranks' average movement in a round; 1 and no momentum: their average.",
        .lowest = 0, .highest = 10, .above_lowest = true},
       Sync<&S::outer_learning_rate>},
      {{.key = "sync.outer_momentum", .type = T::kNumber, .unit = "", .source = "DiLoCo",
        .meaning = "Nesterov's, from round to round.",
        .lowest = 0, .highest = 1, .below_highest = true},
       Sync<&S::outer_momentum>},

      {{.key = "publish.name", .type = T::kName, .unit = "", .source = "Offshoot",
        .meaning = "Of the derivative; not given: the job's name."},
       Publish<&P::name>},
      {{.key = "publish.formats", .type = T::kChoiceList, .unit = "", .source = "Offshoot",
        .meaning = "`adapter`: the PEFT adapter, always; `merged`: also the merged model; `gguf`: "
                   "also `model.gguf`, the merged model for llama.cpp, and `adapter.gguf` (Llama, "
                   "Mistral, Qwen2, Qwen3, ERNIE 4.5 and Hunyuan V1, dense and with experts; of "
                   "DeepSeek-V3 and Kimi K2 `model.gguf` alone).",
        .choices = {"adapter", "merged", "gguf"}, .preflight = true},
       Publish<&P::formats>},
      {{.key = "publish.gguf_type", .type = T::kChoice, .unit = "", .source = "llama.cpp",
        .meaning = "Of the matrices in `model.gguf`.", .choices = {"BF16", "F16", "Q8_0"},
        .preflight = true},
       Publish<&P::gguf_type>},
      {{.key = "publish.push_to", .type = T::kTextList, .unit = "", .source = "Offshoot",
        .meaning = "Where the coordinator copies the derivative: a directory of its own, in full "
                   "and below its allowed roots, or `org/name` on the hub at its `HF_ENDPOINT`."},
       Publish<&P::push_to>},
      {{.key = "publish.push_private", .type = T::kTruth, .unit = "", .source = "Offshoot",
        .meaning = "A repository that a push makes on a hub is private."},
       Publish<&P::push_private>},
  };
  return *rows;
}

const std::vector<KeyRow<DatasetSpec>>& DatasetRows() {
  using T = KeyType;
  static const auto* rows = new std::vector<KeyRow<DatasetSpec>>{
      {{.key = "path", .type = T::kReference, .unit = "", .source = "Axolotl",
        .meaning = "A JSONL file, or `sha256:<digest>` of an uploaded one.", .required = true},
       Dataset<&DatasetSpec::path>},
      {{.key = "type", .type = T::kChoice, .unit = "", .source = "Axolotl",
        .meaning = "`chat`: `messages`; `completion`: `prompt` and `completion`; `text`: `text`; "
                   "`pretokenized`: `input_ids` and `labels`. Of a chat the assistant's turns are "
                   "trained, of a completion the completion, of a text everything.",
        .choices = {"chat", "completion", "text", "pretokenized"}, .preflight = true},
       Dataset<&DatasetSpec::type>},
      {{.key = "name", .type = T::kReference, .unit = "", .source = "Offshoot",
        .meaning = "What messages call it. The command line gives the file's name when it sends the "
                   "file's digest in place of its path. A hub's `org/name` goes into the card."},
       Dataset<&DatasetSpec::name>},
  };
  return *rows;
}
// clang-format on

template <typename Owner>
std::vector<BoundKey> Bind(const std::vector<KeyRow<Owner>>& rows, Owner& owner) {
  std::vector<BoundKey> keys;
  keys.reserve(rows.size());
  for (const KeyRow<Owner>& row : rows) keys.push_back({&row.info, row.field(owner)});
  return keys;
}

std::string NumberText(double value, bool whole) {
  if (whole) return absl::StrCat(static_cast<std::int64_t>(value));
  return absl::StrCat(value);
}

std::string RangeText(const KeyInfo& info, bool whole) {
  const std::string from =
      absl::StrCat(info.above_lowest ? "above " : "from ", NumberText(info.lowest, whole));
  if (info.highest == kNone) return from;
  return absl::StrCat(from, info.below_highest ? " to below " : " to ",
                      NumberText(info.highest, whole));
}

std::string DefaultText(const BoundKey& key) {
  if (key.info->required) return "required";
  const nlohmann::ordered_json value = KeyValueJson(key);
  if (value.is_null() || (value.is_structured() && value.empty())) return "none";
  if (value.is_number_float()) return absl::StrCat("`", value.get<double>(), "`");
  if (value.is_string()) return absl::StrCat("`", value.get<std::string>(), "`");
  if (value.is_array()) {
    return absl::StrCat("`[", absl::StrJoin(value.get<std::vector<std::string>>(), ", "), "]`");
  }
  return absl::StrCat("`", value.dump(), "`");
}

std::string TableRow(const std::string& prefix, const BoundKey& key) {
  const KeyInfo& info = *key.info;
  return absl::StrCat("| `", prefix, info.key, "` | ", AllowedValues(info), " | ", info.unit, " | ",
                      DefaultText(key), " | ", info.meaning, " | ", info.source, " |\n");
}

}  // namespace

std::vector<BoundKey> BindJobKeys(JobSpec& spec) { return Bind(JobRows(), spec); }

std::vector<BoundKey> BindDatasetKeys(DatasetSpec& dataset) { return Bind(DatasetRows(), dataset); }

nlohmann::ordered_json KeyValueJson(const BoundKey& key) {
  if (key.info->key == absl::string_view("per_device_train_batch_size") &&
      *std::get<std::int64_t*>(key.field) == kAutomaticRows) {
    return "auto";
  }
  return std::visit(
      [](const auto* field) -> nlohmann::ordered_json {
        if constexpr (std::is_same_v<decltype(field), const std::string*>) {
          if (field->empty()) return nullptr;
        }
        return *field;
      },
      key.field);
}

std::string AllowedValues(const KeyInfo& info) {
  switch (info.type) {
    case KeyType::kName:
      return "letters, digits, '.', '_', '-'";
    case KeyType::kModelId:
      return "a name such as org/model";
    case KeyType::kReference:
      return "a path, a name or sha256:<digest>";
    case KeyType::kChoice:
      return absl::StrCat("one of ", absl::StrJoin(info.choices, ", "));
    case KeyType::kInteger:
      return absl::StrCat(
          "a whole number ", RangeText(info, true),
          info.key == absl::string_view("per_device_train_batch_size") ? ", or auto" : "");
    case KeyType::kNumber:
      return absl::StrCat("a number ", RangeText(info, false));
    case KeyType::kTruth:
      return "true or false";
    case KeyType::kDuration:
      return "a duration such as 90s, 30m, 2h or 1d";
    case KeyType::kBytes:
      return "a size such as 512MiB or 8GiB";
    case KeyType::kModuleList:
      return "a name or a list of names";
    case KeyType::kChoiceList:
      return absl::StrCat("a list of ", absl::StrJoin(info.choices, ", "));
    case KeyType::kTextList:
      return "a text or a list of texts";
    case KeyType::kLabels:
      return "a map of texts";
  }
  return "";
}

std::string RemedyForForeignKey(const std::string& key) {
  static const auto* known = new std::map<std::string, std::string>{
      {"alpha", "lora_alpha"},
      {"adapter", "init_adapter"},
      {"batch_size", "per_device_train_batch_size"},
      {"beta1", "adam_beta1"},
      {"beta2", "adam_beta2"},
      {"bf16", "dtype: bfloat16"},
      {"cutoff_len", "sequence_len"},
      {"data", "datasets"},
      {"data_path", "datasets"},
      {"dataset", "datasets"},
      {"dropout", "lora_dropout"},
      {"epochs", "num_train_epochs"},
      {"fp16", "dtype: bfloat16"},
      {"fp32", "dtype: float32"},
      {"grad_clip", "max_grad_norm"},
      {"lora_model_dir", "init_adapter"},
      {"lora_target_linear", "lora_target_modules: all-linear"},
      {"lr", "learning_rate"},
      {"lr_scheduler", "lr_scheduler_type"},
      {"max_length", "sequence_len"},
      {"max_seq_length", "sequence_len"},
      {"micro_batch_size", "per_device_train_batch_size"},
      {"model", "base_model"},
      {"model_id", "base_model_id"},
      {"model_name_or_path", "base_model"},
      {"n_epochs", "num_train_epochs"},
      {"num_epochs", "num_train_epochs"},
      {"optim", "optimizer"},
      {"packing", "sample_packing"},
      {"peft_lora_alpha", "lora_alpha"},
      {"peft_lora_r", "lora_r"},
      {"r", "lora_r"},
      {"rank", "lora_r"},
      {"seq_len", "sequence_len"},
      {"target_modules", "lora_target_modules"},
      {"timeout", "max_runtime"},
      {"torch_dtype", "dtype"},
      {"train_file", "datasets"},
      {"warmup", "warmup_steps"},
  };
  const auto found = known->find(key);
  if (found != known->end()) return absl::StrCat("write ", found->second);
  if (key == "output_dir") return "name the directory with --output of offshoot run";
  if (key == "resume_from_checkpoint") return "leave it out: a job goes on by itself";
  return "";
}

std::string JobFileTables() {
  const std::string head =
      "| key | value | unit | default | meaning | name from |\n"
      "| --- | --- | --- | --- | --- | --- |\n";
  JobSpec defaults;
  DatasetSpec dataset;
  std::string text = head;
  for (const BoundKey& key : BindJobKeys(defaults)) {
    if (absl::string_view(key.info->key) == "val_set_size") {
      // The data sets stand between the adapter to go on from and the split.
      for (const BoundKey& inner : BindDatasetKeys(dataset)) {
        text += TableRow("datasets[].", inner);
      }
    }
    text += TableRow("", key);
  }
  return text;
}

}  // namespace offshoot
