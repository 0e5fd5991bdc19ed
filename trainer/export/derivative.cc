#include "trainer/export/derivative.h"

#include <torch/version.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "trainer/error.h"
#include "trainer/export/gguf_export.h"
#include "trainer/export/model_card.h"
#include "trainer/export/result_directory.h"
#include "trainer/weights/durable_file.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kLineageVersion = 1;

Json OrNull(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json OrNull(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json FieldOf(const Json& object, const char* key) {
  return object.is_object() && object.contains(key) ? object.at(key) : Json(nullptr);
}

// The attempts that the coordinator knew of when this one started, and this one.
Json AttemptsOf(const DerivativeRequest& request) {
  Json attempts = FieldOf(request.lineage, "attempts");
  if (!attempts.is_array()) attempts = Json::array();
  std::int64_t number = request.attempt;
  if (number == 0) {
    number = 1;
    for (const Json& attempt : attempts) {
      number = std::max(number, attempt.value("number", std::int64_t{0}) + 1);
    }
  }
  const auto same = std::find_if(attempts.begin(), attempts.end(), [&](const Json& attempt) {
    return attempt.value("number", std::int64_t{0}) == number;
  });
  Json& mine = same != attempts.end() ? *same : attempts.emplace_back(Json{{"number", number}});
  mine["first_step"] = request.first_step;
  mine["last_step"] = request.last_step;
  return attempts;
}

Json FilesOf(const std::string& directory) {
  Json files = Json::array();
  for (const ResultFile& file : ListResultFiles(directory)) {
    files.push_back(
        {{"path", file.path}, {"digest", file.digest}, {"size_bytes", file.size_bytes}});
  }
  return files;
}

nlohmann::ordered_json LineageOf(const DerivativeRequest& request, const std::string& directory) {
  nlohmann::ordered_json lineage;
  lineage["lineage_version"] = kLineageVersion;
  lineage["name"] = request.name;
  lineage["job_id"] = OrNull(request.job_id);
  lineage["base_model"] = {{"id", OrNull(request.base_model_id)},
                           {"revision", OrNull(request.base_model_revision)},
                           {"digest", OrNull(request.base_digest)}};
  if (request.quantisation != Quantisation::kNone) {
    lineage["trained_on"] = NameOf(request.quantisation);
    lineage["merged_into"] = request.merged || !request.gguf_type.empty()
                                 ? Json("the base model's own weights, not their quantised values")
                                 : Json(nullptr);
  }
  lineage["datasets"] = Json::array();
  for (const DerivativeDataset& dataset : request.datasets) {
    lineage["datasets"].push_back({{"type", dataset.type}, {"digest", OrNull(dataset.digest)}});
  }
  lineage["versions"] = {{"offshoot", OFFSHOOT_VERSION},
                         {"libtorch", TORCH_VERSION},
                         {"coordinator", FieldOf(request.lineage, "coordinator_version")}};
  lineage["attempts"] = AttemptsOf(request);
  lineage["evaluation"] = {{"base_eval_loss", OrNull(request.base_eval_loss)},
                           {"eval_loss", OrNull(request.eval_loss)},
                           {"tokens", request.eval_tokens}};
  lineage["samples"] = request.samples;
  lineage["reproducible"] = request.reproducible;
  lineage["environment"] = request.environment;
  lineage["settings"] = request.settings;
  // Whatever else the coordinator says of where the job came from: its spec and the spec's digest.
  if (request.lineage.is_object()) {
    for (const auto& [key, value] : request.lineage.items()) {
      if (key != "coordinator_version" && !lineage.contains(key)) lineage[key] = value;
    }
  }
  lineage["files"] = FilesOf(directory);
  return lineage;
}

std::string CardOf(const DerivativeRequest& request) {
  ModelCard card;
  card.name = request.name;
  card.base_model_id = request.base_model_id;
  card.base_digest = request.base_digest;
  card.license = FindLicense(*request.base);
  card.dataset_ids = request.dataset_ids;
  card.base_eval_loss = request.base_eval_loss;
  card.eval_loss = request.eval_loss;
  card.eval_tokens = request.eval_tokens;
  card.steps = request.last_step;
  card.has_merged = request.merged;
  card.has_gguf = !request.gguf_type.empty();
  card.has_gguf_adapter = card.has_gguf && HasGgufAdapter(request.decoder->spec());
  card.quantisation = request.quantisation;
  card.settings = request.settings;
  return FormatModelCard(card);
}

}  // namespace

void WriteDerivative(const DerivativeRequest& original) {
  DerivativeRequest request = original;
  if (request.name.empty()) request.name = "derivative";
  ResultDirectory result(request.directory);
  const std::string& directory = result.path();
  // Never a local path: whoever loads the adapter must be able to tell which base it wants.
  const std::string& base_name =
      request.base_model_id.empty() ? request.base_digest : request.base_model_id;
  request.adapters->Save(directory, base_name, request.base_model_revision);
  if (request.merged) {
    const std::string merged = directory + "/merged";
    std::error_code error;
    if (!fs::create_directory(merged, error)) {
      throw Error(Reason::kInternal, merged + ": cannot be made: " + error.message() + ".");
    }
    WriteMergedModel(*request.base, AdaptersByPath(*request.decoder, *request.adapters),
                     request.tokenizer, merged, request.merged_options);
  }
  if (!request.gguf_type.empty()) {
    const AdapterByPath adapters = AdaptersByPath(*request.decoder, *request.adapters);
    if (request.tokenizer == nullptr) {
      throw Error(Reason::kBadModel,
                  "the base has no tokenizer, and a GGUF file needs one inside; "
                  "leave gguf out of publish.formats.");
    }
    WriteMergedGguf(*request.base, *request.decoder, adapters, *request.tokenizer,
                    directory + "/model.gguf", request.gguf_type, request.name);
    if (HasGgufAdapter(request.decoder->spec())) {
      WriteGgufAdapter(request.decoder->spec(), adapters, directory + "/adapter.gguf",
                       request.name);
    }
  }
  if (!request.metrics_path.empty() && fs::exists(request.metrics_path)) {
    CopyFileDurably(request.metrics_path, directory + "/training_metrics.jsonl");
  }
  WriteFileDurably(directory + "/README.md", CardOf(request));
  WriteFileDurably(directory + "/offshoot.json",
                   LineageOf(request, directory)
                           .dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
                       "\n");
  result.Commit();
}

}  // namespace offshoot::trainer
