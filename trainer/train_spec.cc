#include "trainer/train_spec.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kMaxSpecBytes = 16 * 1024 * 1024;
constexpr std::int64_t kSpecVersion = 1;

[[noreturn]] void Refuse(const std::string& message) { throw Error(Reason::kBadSpec, message); }

// Reads keys of one object, remembers which, and fills in the defaults.
class Reader {
 public:
  Reader(nlohmann::json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {
    if (!object_.is_object()) {
      Refuse("the spec's " + (prefix_.empty() ? "top" : prefix_) + " must be a JSON object.");
    }
  }

  std::string Text(const std::string& key, const std::string& fallback) {
    nlohmann::json& value = Take(key, fallback);
    if (value.is_null()) {
      return "";
    }
    if (!value.is_string()) {
      WrongType(key, "a text", value);
    }
    return value;
  }

  std::int64_t Integer(const std::string& key, std::int64_t fallback, std::int64_t minimum,
                       std::int64_t maximum = std::numeric_limits<std::int32_t>::max()) {
    nlohmann::json& value = Take(key, fallback);
    if (!value.is_number_integer()) {
      WrongType(key, "a whole number", value);
    }
    const std::int64_t number = value.get<std::int64_t>();
    if (number < minimum || number > maximum) {
      Refuse("the spec's " + prefix_ + key + " is " + value.dump() + "; it must be from " +
             std::to_string(minimum) + " to " + std::to_string(maximum) + ".");
    }
    return number;
  }

  double Number(const std::string& key, double fallback, double minimum, double maximum) {
    nlohmann::json& value = Take(key, fallback);
    if (!value.is_number()) {
      WrongType(key, "a number", value);
    }
    const double number = value.get<double>();
    if (!(number >= minimum && number <= maximum)) {
      std::ostringstream message;
      message << "the spec's " << prefix_ << key << " is " << value.dump() << "; it must be from "
              << minimum << " to " << maximum << ".";
      Refuse(message.str());
    }
    return number;
  }

  bool Flag(const std::string& key, bool fallback) {
    nlohmann::json& value = Take(key, fallback);
    if (!value.is_boolean()) {
      WrongType(key, "true or false", value);
    }
    return value;
  }

  // Any value; null when absent.
  nlohmann::json& Any(const std::string& key) { return Take(key, nullptr); }

  // Keys of the job file that others act on (the worker, the coordinator): known, but not used
  // here.
  void Pass(std::initializer_list<const char*> keys) {
    for (const char* key : keys) {
      known_.insert(key);
    }
  }

  void RefuseUnknown() const {
    std::string unknown;
    for (const auto& [key, value] : object_.items()) {
      if (known_.count(key) == 0) {
        unknown += (unknown.empty() ? "" : ", ") + prefix_ + key;
      }
    }
    if (!unknown.empty()) {
      Refuse("the spec has unknown keys: " + unknown +
             "; docs/trainer-protocol.md lists those there are.");
    }
  }

 private:
  nlohmann::json& Take(const std::string& key, nlohmann::json fallback) {
    known_.insert(key);
    if (!object_.contains(key)) {
      object_[key] = std::move(fallback);
    }
    return object_[key];
  }

  [[noreturn]] void WrongType(const std::string& key, const std::string& wanted,
                              const nlohmann::json& value) const {
    Refuse("the spec's " + prefix_ + key + " must be " + wanted + ", not " +
           value.dump().substr(0, 80) + ".");
  }

  nlohmann::json& object_;
  const std::string prefix_;
  std::set<std::string> known_;
};

std::string RequiredText(Reader& reader, const std::string& name, const std::string& key) {
  const std::string value = reader.Text(key, "");
  if (value.empty()) {
    Refuse("the spec needs " + name + key + ".");
  }
  return value;
}

void ReadFiles(Reader& top, TrainSpec& spec) {
  nlohmann::json& base = top.Any("base_model");
  if (base.is_string()) {  // started by hand: a path is enough
    base = nlohmann::json{{"path", base}};
  }
  Reader base_reader(base, "base_model.");
  spec.base_model.path = RequiredText(base_reader, "base_model.", "path");
  spec.base_model.digest = base_reader.Text("digest", "");
  spec.base_model.id = base_reader.Text("id", "");
  spec.base_model.revision = base_reader.Text("revision", "");
  base_reader.RefuseUnknown();

  nlohmann::json& datasets = top.Any("datasets");
  if (!datasets.is_array() || datasets.empty()) {
    Refuse("the spec needs datasets: a list of {\"path\", \"type\"} objects.");
  }
  for (nlohmann::json& entry : datasets) {
    Reader reader(entry, "datasets.");
    DatasetRef dataset;
    dataset.path = RequiredText(reader, "datasets.", "path");
    dataset.type = reader.Text("type", "chat");
    dataset.digest = reader.Text("digest", "");
    dataset.name = reader.Text("name", "");  // trainer/data reads it from the resolved spec, too
    reader.RefuseUnknown();
    spec.datasets.push_back(std::move(dataset));
  }

  nlohmann::json& adapter = top.Any("init_adapter");
  if (adapter.is_string()) {
    adapter = nlohmann::json{{"path", adapter}};
  }
  if (!adapter.is_null()) {
    Reader reader(adapter, "init_adapter.");
    spec.init_adapter = RequiredText(reader, "init_adapter.", "path");
    reader.Text("digest", "");
    reader.RefuseUnknown();
  }
  spec.resume_from = top.Text("resume_from", "");
}

void ReadBaseFormat(Reader& top, TrainSpec& spec) {
  spec.dtype = ParseDtype(top.Text("dtype", "bfloat16"));
  const bool four = top.Flag("load_in_4bit", false);
  const bool eight = top.Flag("load_in_8bit", false);
  if (four && eight) {
    Refuse("the spec sets both load_in_4bit and load_in_8bit; choose one.");
  }
  spec.quantisation = four ? Quantisation::kNf4 : eight ? Quantisation::kInt8 : Quantisation::kNone;
}

void ReadLora(Reader& top, TrainSpec& spec) {
  spec.lora.r = top.Integer("lora_r", 16, 1, 65536);
  spec.lora.alpha = top.Number("lora_alpha", 32, 0, 1e6);
  spec.lora.dropout = top.Number("lora_dropout", 0, 0, 0.99);
  spec.lora.use_rslora = top.Flag("use_rslora", false);
  nlohmann::json& targets = top.Any("lora_target_modules");
  if (targets.is_null()) {
    targets = "all-linear";
  }
  spec.lora.target_modules.clear();
  if (targets.is_string()) {
    spec.lora.target_modules.push_back(targets);
  } else if (targets.is_array() && !targets.empty()) {
    for (const nlohmann::json& target : targets) {
      if (!target.is_string()) {
        Refuse("the spec's lora_target_modules must be texts, not " + target.dump() + ".");
      }
      spec.lora.target_modules.push_back(target);
    }
  } else {
    Refuse("the spec's lora_target_modules must be a name or a list of names.");
  }
}

void ReadOptimizer(Reader& top, TrainSpec& spec) {
  const std::string optimizer = top.Text("optimizer", "adamw");
  if (optimizer != "adamw" && optimizer != "adamw_torch") {
    Refuse("optimizer '" + optimizer + "' is unknown; use adamw.");
  }
  spec.learning_rate = top.Number("learning_rate", 2e-4, 0, 100);
  spec.weight_decay = top.Number("weight_decay", 0, 0, 100);
  spec.adam_beta1 = top.Number("adam_beta1", 0.9, 0, 0.9999999);
  spec.adam_beta2 = top.Number("adam_beta2", 0.999, 0, 0.9999999);
  spec.adam_epsilon = top.Number("adam_epsilon", 1e-8, 0, 1);
  spec.lr_scheduler_type = ParseScheduleKind(top.Text("lr_scheduler_type", "linear"));
  spec.warmup_steps = top.Integer("warmup_steps", 0, 0);
  spec.warmup_ratio = top.Number("warmup_ratio", 0, 0, 1);
  spec.max_grad_norm = top.Number("max_grad_norm", 1.0, 0, 1e9);
}

void ReadLoop(Reader& top, TrainSpec& spec) {
  spec.num_train_epochs = top.Number("num_train_epochs", 1, 0, 1e6);
  if (top.Any("max_steps").is_null()) {
    top.Any("max_steps") = 0;
  }
  spec.max_steps = top.Integer("max_steps", 0, -1);
  if (nlohmann::json& rows = top.Any("per_device_train_batch_size"); rows == "auto") {
    spec.automatic_batch = true;
    rows = spec.per_device_train_batch_size;
  } else if (rows.is_null()) {
    rows = spec.per_device_train_batch_size;
  }
  spec.per_device_train_batch_size = top.Integer("per_device_train_batch_size", 8, 1, 1 << 20);
  spec.gradient_accumulation_steps = top.Integer("gradient_accumulation_steps", 1, 1, 1 << 20);
  top.Flag("gradient_checkpointing", false);
  const std::string granularity = top.Text("recompute_granularity", "full");
  if (granularity != "full" && granularity != "selective") {
    Refuse("the spec's recompute_granularity is \"" + granularity +
           "\"; it must be full or selective.");
  }
  spec.recomputed = ReadRecomputed(spec.resolved);
  spec.sequence_len = top.Integer("sequence_len", 1024, 2, 1 << 22);
  spec.logging_steps = top.Integer("logging_steps", 1, 1);
  spec.save_steps = top.Integer("save_steps", 50, 0);
  spec.save_total_limit = top.Integer("save_total_limit", 2, 0);
  spec.eval_steps = top.Integer("eval_steps", 0, 0);
  spec.seed = static_cast<std::uint64_t>(
      top.Integer("seed", 42, 0, std::numeric_limits<std::int64_t>::max()));
  spec.reproducible = top.Flag("reproducible", true);
  top.Number("val_set_size", 0, 0, 1e12);
  top.Flag("shuffle", true);
  top.Flag("group_by_length", false);
  top.Flag("sample_packing", false);
}

void ReadSync(Reader& top, TrainSpec& spec) {
  nlohmann::json& sync = top.Any("sync");
  if (sync.is_null() || sync == "every_step") {
    sync = nlohmann::json::object();
  }
  Reader reader(sync, "sync.");
  spec.local_steps = reader.Integer("local_steps", spec.local_steps, 0);
  spec.outer.learning_rate = reader.Number("outer_learning_rate", spec.outer.learning_rate, 0, 10);
  spec.outer.momentum = reader.Number("outer_momentum", spec.outer.momentum, 0, 0.9999999);
  reader.RefuseUnknown();
}

void ReadPublish(Reader& top, TrainSpec& spec) {
  nlohmann::json& publish = top.Any("publish");
  if (publish.is_null()) {
    publish = nlohmann::json::object();
  }
  if (!publish.is_object()) {
    Refuse("the spec's publish must be an object.");
  }
  const nlohmann::json formats = publish.value("formats", nlohmann::json::array({"adapter"}));
  if (!formats.is_array()) {
    Refuse("the spec's publish.formats must be a list of adapter, merged and gguf.");
  }
  const nlohmann::json type = publish.value("gguf_type", nlohmann::json("BF16"));
  if (type != "BF16" && type != "F16" && type != "Q8_0") {
    Refuse("publish.gguf_type is " + type.dump().substr(0, 80) + "; use BF16, F16 or Q8_0.");
  }
  for (const nlohmann::json& format : formats) {
    if (format == "merged") {
      spec.publish_merged = true;
    } else if (format == "gguf") {
      spec.publish_gguf = type;
    } else if (format != "adapter") {
      Refuse("publish.formats has " + format.dump() + "; use adapter, merged and gguf.");
    }
  }
}

}  // namespace

at::ScalarType ParseDtype(const std::string& name) {
  if (name == "float32") {
    return at::kFloat;
  }
  if (name == "bfloat16") {
    return at::kBFloat16;
  }
  Refuse("dtype '" + name + "' is unknown; use float32 or bfloat16.");
}

TrainSpec ParseTrainSpec(const nlohmann::json& document) {
  TrainSpec spec;
  spec.resolved = document;
  Reader top(spec.resolved, "");
  const std::int64_t version = top.Integer("spec_version", kSpecVersion, 0);
  if (version != kSpecVersion) {
    Refuse("the spec's version is " + std::to_string(version) + "; this trainer reads version " +
           std::to_string(kSpecVersion) + ".");
  }
  spec.job_id = top.Text("job_id", "");
  spec.attempt = top.Integer("attempt", 1, 0);
  ReadFiles(top, spec);
  spec.device = top.Text("device", "cpu");
  spec.threads = top.Integer("threads", 1, 1, 4096);
  spec.device_memory_bytes = top.Integer("device_memory_bytes", 0, 0, std::int64_t{1} << 50);
  ReadBaseFormat(top, spec);
  ReadLora(top, spec);
  ReadOptimizer(top, spec);
  ReadLoop(top, spec);
  ReadSync(top, spec);
  ReadPublish(top, spec);
  spec.lineage = top.Any("lineage");
  if (spec.base_model.id.empty()) {
    spec.base_model.id = top.Text("base_model_id", "");
  }
  top.Pass({"name", "team", "labels", "priority", "base_model_id", "max_runtime", "resources"});
  top.RefuseUnknown();
  return spec;
}

TrainSpec ReadTrainSpec(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) {
    Refuse("cannot read the spec " + path + "; give --spec an existing file.");
  }
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kMaxSpecBytes) {
    Refuse("the spec " + path + " is no file of at most 16 MiB.");
  }
  std::string text(static_cast<std::size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  nlohmann::json document;
  try {
    document = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    Refuse("the spec " + path + " is no JSON: " + error.what());
  }
  return ParseTrainSpec(document);
}

Recomputed ReadRecomputed(const nlohmann::json& spec) {
  if (!spec.value("gradient_checkpointing", false)) return Recomputed::kNothing;
  return spec.value("recompute_granularity", "full") == "selective" ? Recomputed::kFeedForward
                                                                    : Recomputed::kLayers;
}

void WriteRecomputed(Recomputed recomputed, nlohmann::json& spec) {
  spec["gradient_checkpointing"] = recomputed != Recomputed::kNothing;
  spec.erase("recompute_granularity");
  if (recomputed == Recomputed::kFeedForward) spec["recompute_granularity"] = "selective";
}

nlohmann::json TrainingIdentity(const TrainSpec& spec) {
  static constexpr const char* kKeys[] = {"val_set_size",
                                          "sequence_len",
                                          "dtype",
                                          "lora_r",
                                          "lora_alpha",
                                          "lora_dropout",
                                          "lora_target_modules",
                                          "optimizer",
                                          "learning_rate",
                                          "weight_decay",
                                          "adam_beta1",
                                          "adam_beta2",
                                          "adam_epsilon",
                                          "lr_scheduler_type",
                                          "warmup_steps",
                                          "warmup_ratio",
                                          "max_grad_norm",
                                          "num_train_epochs",
                                          "max_steps",
                                          "per_device_train_batch_size",
                                          "gradient_accumulation_steps",
                                          "seed",
                                          "shuffle",
                                          "group_by_length",
                                          "sample_packing"};
  nlohmann::json identity;
  for (const char* key : kKeys) {
    identity[key] = spec.resolved.at(key);
  }
  if (spec.quantisation != Quantisation::kNone) {
    identity["quantisation"] = NameOf(spec.quantisation);
  }
  if (spec.automatic_batch) {  // a choice of the first attempt that the later ones keep
    WriteRecomputed(spec.recomputed, identity);
  }
  if (spec.local_steps > 0) {
    identity["sync"] = spec.resolved.at("sync");
  }
  identity["base_model_digest"] = spec.base_model.digest;
  identity["dataset_digests"] = nlohmann::json::array();
  for (const DatasetRef& dataset : spec.datasets) {
    identity["dataset_digests"].push_back(dataset.digest);
  }
  return identity;
}

}  // namespace offshoot::trainer
