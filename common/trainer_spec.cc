#include "common/trainer_spec.h"

#include <nlohmann/json.hpp>

#include "absl/strings/string_view.h"
#include "common/digest.h"
#include "common/job_spec_table.h"

namespace offshoot {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSpecVersion = 1;
// Counts up when preflight's checks change, so that older cached answers are not used.
constexpr int kPreflightVersion = 2;

Json OrNull(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

// key "resources.ranks" goes to json["resources"]["ranks"].
void Place(Json& json, const BoundKey& key) {
  const std::string name = key.info->key;
  const std::size_t dot = name.find('.');
  if (dot == std::string::npos) {
    json[name] = KeyValueJson(key);
  } else {
    json[name.substr(0, dot)][name.substr(dot + 1)] = KeyValueJson(key);
  }
}

Json LineageJson(const JobSpec& spec, const TrainerSpecContext& context) {
  Json attempts = Json::array();
  for (const AttemptLineage& attempt : context.attempts) {
    attempts.push_back({{"number", attempt.number},
                        {"worker", attempt.worker},
                        {"first_step", attempt.first_step},
                        {"last_step", attempt.last_step}});
  }
  return {{"spec_digest", SpecDigest(spec)},
          {"spec_yaml", context.spec_yaml},
          {"coordinator_version", context.coordinator_version},
          {"attempts", std::move(attempts)}};
}

}  // namespace

std::string TrainerSpecJson(const JobSpec& spec, const TrainerSpecContext& context) {
  JobSpec values = spec;
  Json json;
  json["spec_version"] = kSpecVersion;
  json["job_id"] = context.job_id.value();
  json["attempt"] = static_cast<std::int32_t>(context.attempt);
  for (const BoundKey& key : BindJobKeys(values)) {
    // Where a job waits says nothing to the trainer.
    if (absl::string_view(key.info->key) != "queue") Place(json, key);
  }

  // Workers that came before these keys read what does not ask for them.
  if (spec.sync == SyncSpec()) json.erase("sync");
  if (spec.recompute_granularity == JobSpec().recompute_granularity) {
    json.erase("recompute_granularity");
  }

  json["base_model"] = {
      {"path", context.base_model.path},
      {"digest", context.base_model.digest},
      {"id",
       OrNull(spec.base_model_id.empty() ? context.base_model.repository : spec.base_model_id)},
      {"revision",
       OrNull(spec.base_model_id.empty() || spec.base_model_id == context.base_model.repository
                  ? context.base_model.commit
                  : std::string())}};
  json["datasets"] = Json::array();
  for (std::size_t i = 0; i < context.datasets.size() && i < spec.datasets.size(); ++i) {
    json["datasets"].push_back({{"path", context.datasets[i].path},
                                {"type", spec.datasets[i].type},
                                {"name", OrNull(spec.datasets[i].name)},
                                {"digest", context.datasets[i].digest}});
  }
  json["init_adapter"] = nullptr;
  if (context.init_adapter.has_value()) {
    json["init_adapter"] = {{"path", context.init_adapter->path},
                            {"digest", context.init_adapter->digest}};
  }
  json["resume_from"] =
      context.resume_from.has_value() ? Json(*context.resume_from) : Json(nullptr);
  json["device"] = context.device;
  json["threads"] = context.threads;
  json["lineage"] = LineageJson(spec, context);
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string PreflightKey(const JobSpec& spec, const std::string& base_model_digest,
                         const std::vector<std::string>& dataset_digests,
                         const std::string& init_adapter_digest) {
  JobSpec values = spec;
  Json json;
  json["version"] = kPreflightVersion;
  json["base_model"] = base_model_digest;
  json["init_adapter"] = OrNull(init_adapter_digest);
  json["datasets"] = Json::array();
  for (std::size_t i = 0; i < dataset_digests.size() && i < spec.datasets.size(); ++i) {
    json["datasets"].push_back({dataset_digests[i], spec.datasets[i].type});
  }
  for (const BoundKey& key : BindJobKeys(values)) {
    if (key.info->preflight) Place(json, key);
  }
  return DigestOf(json.dump());
}

}  // namespace offshoot
