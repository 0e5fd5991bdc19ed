#include "trainer/publication.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "trainer/error.h"
#include "trainer/export/derivative.h"
#include "trainer/export/reference.h"
#include "trainer/memory_estimate.h"
#include "trainer/models/generate.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kReferenceRows = 4;

bool StopRequested(const JobParts& parts) {
  return parts.control.stop_request() != StopRequest::kNone;
}

// What the card and offshoot.json tell of the settings: no paths, and nothing that says where or
// for whom the job ran.
nlohmann::json PublicSettings(const TrainSpec& spec) {
  nlohmann::json settings = spec.resolved;
  for (const char* key : {"spec_version", "job_id",
                          "attempt",      "name",
                          "team",         "labels",
                          "priority",     "resources",
                          "max_runtime",  "publish",
                          "base_model",   "base_model_id",
                          "datasets",     "init_adapter",
                          "resume_from",  "device",
                          "threads",      "device_memory_bytes",
                          "lineage",      "logging_steps",
                          "save_steps",   "save_total_limit",
                          "eval_steps"}) {
    settings.erase(key);
  }
  return settings;
}

std::string DerivativeName(const TrainSpec& spec) {
  for (const nlohmann::json& holder : {spec.resolved["publish"], spec.resolved}) {
    const auto found = holder.find("name");
    if (found != holder.end() && found->is_string() && !found->get<std::string>().empty()) {
      return *found;
    }
  }
  return spec.job_id;
}

// Held-out rows if there are any: what the adapter changes shows there as well as anywhere.
void WriteReferenceLogits(const JobParts& parts, TrainingJob& job) {
  const Dataset& data = parts.data.held_out->size() > 0 ? *parts.data.held_out : *parts.data.train;
  std::vector<std::vector<std::int64_t>> rows;
  for (std::int64_t row = 0; row < std::min(kReferenceRows, data.size()); ++row) {
    const auto ids = data.ids(row);
    rows.emplace_back(ids.begin(), ids.end());
  }
  WriteReference(parts.work_directory + "/reference.safetensors", parts.decoder, &job.adapters(),
                 parts.spec.dtype, rows, parts.spec.quantisation);
}

constexpr std::int64_t kSampleTokens = 64;

// What a person would call the row's prompt: the text of its last message before the first answer,
// or its `prompt`. Empty where the data has no such thing.
std::string PromptText(const TrainSpec& spec, std::int64_t line) {
  for (const DatasetRef& dataset : spec.datasets) {
    std::ifstream file(dataset.path);
    std::string text;
    for (; line >= 0 && std::getline(file, text); --line) {
    }
    if (line >= 0) {
      continue;  // in a later file
    }
    const nlohmann::json row = nlohmann::json::parse(text, nullptr, false);
    if (!row.is_object()) {
      return "";
    }
    if (row.contains("prompt") && row["prompt"].is_string()) {
      return row["prompt"];
    }
    std::string prompt;
    for (const nlohmann::json& message : row.value("messages", nlohmann::json::array())) {
      if (!message.is_object() || message.value("role", nlohmann::json()) == "assistant") {
        break;
      }
      const nlohmann::json content = message.value("content", nlohmann::json());
      prompt = content.is_string() ? content.get<std::string>() : prompt;
    }
    return prompt;
  }
  return "";
}

// The first held-out row's prompt (what comes before its first trained token), answered greedily by
// both: {prompt, base, derivative}, or null where there is no prompt.
nlohmann::json MakeSample(const JobParts& parts, const PreparedJob& prepared, TrainingJob& job) {
  const Dataset& data = parts.data.held_out->size() > 0 ? *parts.data.held_out : *parts.data.train;
  const auto ids = data.ids(0);
  const auto labels = data.labels(0);
  std::vector<std::int64_t> prompt;
  for (std::size_t i = 0; i < ids.size() && labels[i] == kIgnoredLabel; ++i) {
    prompt.push_back(ids[i]);
  }
  if (prompt.size() < 2 && ids.size() >= 2) {  // text rows train from the second token on
    prompt.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(ids.size() + 1) / 2);
  }
  if (prompt.empty() || prepared.tokenizer == nullptr) {
    return nullptr;
  }
  GenerateOptions options;
  options.max_new_tokens = kSampleTokens;
  options.stop_ids = StopIds(*prepared.tokenizer, prepared.files);
  const auto answer = [&](const Adapters* adapters) {
    return prepared.tokenizer->Decode(Generate(parts.decoder, adapters, prompt, options).ids,
                                      /*skip_special_tokens=*/true);
  };
  std::string shown = PromptText(parts.spec, data.line(0));
  if (shown.empty()) {
    shown = prepared.tokenizer->Decode(prompt, /*skip_special_tokens=*/true);
  }
  return {{"prompt", shown}, {"base", answer(nullptr)}, {"derivative", answer(&job.adapters())}};
}

struct FinalLosses {
  std::optional<double> base;
  std::optional<double> derivative;
  std::int64_t tokens = 0;
};

// "org/name", which a card may link to: never a path or a file's name.
bool IsHubName(const std::string& name) {
  const std::size_t slash = name.find('/');
  return slash != std::string::npos && slash > 0 && slash + 1 < name.size() &&
         name.find('/', slash + 1) == std::string::npos && name[0] != '.' && name[0] != '~' &&
         !name.ends_with(".jsonl") && !name.ends_with(".json");
}

void Export(const JobParts& parts, const PreparedJob& prepared, TrainingJob& job,
            const TrainOutcome& outcome, const FinalLosses& losses, const nlohmann::json& sample) {
  const TrainSpec& spec = parts.spec;
  DerivativeRequest request;
  request.base = &prepared.files;
  request.decoder = &parts.decoder;
  request.adapters = &job.adapters();
  request.tokenizer = prepared.tokenizer.get();
  request.directory = parts.work_directory + "/result";
  request.name = DerivativeName(spec);
  request.job_id = spec.job_id;
  request.attempt = spec.attempt;
  request.base_model_id = spec.base_model.id;
  request.base_model_revision = spec.base_model.revision;
  request.base_digest = spec.base_model.digest;
  for (const DatasetRef& dataset : spec.datasets) {
    request.datasets.push_back({dataset.type, dataset.digest});
    if (IsHubName(dataset.name)) request.dataset_ids.push_back(dataset.name);
  }
  request.merged = spec.publish_merged;
  request.gguf_type = spec.publish_gguf;
  request.quantisation = spec.quantisation;
  request.merged_options.dtype = spec.dtype;
  request.lineage = spec.lineage;
  request.settings = PublicSettings(spec);
  request.reproducible = spec.reproducible;
  request.environment = job.environment();
  request.first_step = outcome.first_step;
  request.last_step = outcome.last_step;
  request.base_eval_loss = losses.base;
  request.eval_loss = losses.derivative;
  request.eval_tokens = losses.tokens;
  if (!sample.is_null()) {
    request.samples.push_back(sample);
  }
  request.metrics_path = job.metrics_path();
  WriteDerivative(request);
}

}  // namespace

bool Publish(const JobParts& parts, const PreparedJob& prepared, TrainingJob& job,
             const TrainOutcome& outcome) {
  const bool first_rank = parts.collective.rank() == 0;
  FinalLosses losses;
  if (parts.data.held_out->size() > 0) {
    if (first_rank) {
      parts.events.Emit("stage", {{"stage", "evaluating"}});
    }
    const LossSum derivative = job.EvaluateHeldOut(/*base=*/false);
    const LossSum base = job.EvaluateHeldOut(/*base=*/true);
    losses = {base.Mean(), derivative.Mean(), derivative.tokens};
  }
  if (StopRequested(parts)) {
    return false;
  }
  if (!first_rank) {
    return true;
  }
  nlohmann::json result = {{"path", parts.work_directory + "/result"},
                           {"first_step", outcome.first_step},
                           {"last_step", outcome.last_step},
                           {"base_eval_loss", nullptr},
                           {"eval_loss", nullptr}};
  if (losses.derivative) {
    result["base_eval_loss"] = EncodeNumber(*losses.base);
    result["eval_loss"] = EncodeNumber(*losses.derivative);
    std::fprintf(stderr, "held-out loss: base %.4f, derivative %.4f\n", *losses.base,
                 *losses.derivative);
    parts.events.Emit("eval", {{"step", outcome.last_step},
                               {"eval_loss", result["eval_loss"]},
                               {"base_eval_loss", result["base_eval_loss"]},
                               {"tokens", losses.tokens}});
  }
  const nlohmann::json sample = MakeSample(parts, prepared, job);
  if (!sample.is_null()) {
    parts.events.Emit("sample", sample);
  }
  parts.events.Emit("stage", {{"stage", "exporting"}});
  WriteReferenceLogits(parts, job);
  Export(parts, prepared, job, outcome, losses, sample);
  result["peak_memory_bytes"] = PeakMemoryBytes();
  parts.events.Emit("result", std::move(result));
  return true;
}

}  // namespace offshoot::trainer
