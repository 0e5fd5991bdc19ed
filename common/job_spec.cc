#include "common/job_spec.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/digest.h"
#include "common/job_spec_reader.h"
#include "common/job_spec_table.h"
#include "common/yaml_tree.h"

namespace offshoot {
namespace {

bool Given(const GivenKeys& given, const std::string& key) { return given.count(key) != 0; }

int LineOf(const GivenKeys& given, const std::string& key) {
  const auto found = given.find(key);
  return found == given.end() ? 0 : found->second;
}

bool HasElasticRanks(const ResourcesSpec& resources) {
  return (resources.min_ranks > 0 && resources.min_ranks != resources.ranks) ||
         (resources.max_ranks > 0 && resources.max_ranks != resources.ranks);
}

bool ReproducibleByDefault(const ResourcesSpec& resources) {
  return resources.ranks == 1 && !HasElasticRanks(resources);
}

void CheckSchedule(const JobSpec& spec, const GivenKeys& given, std::vector<SpecFault>& faults) {
  if (spec.warmup_steps > 0 && spec.warmup_ratio > 0) {
    faults.push_back({LineOf(given, "warmup_ratio"), "warmup_ratio",
                      "is given beside warmup_steps; keep one of the two"});
  }
  if (spec.max_steps > 0 && spec.warmup_steps > spec.max_steps) {
    faults.push_back({LineOf(given, "warmup_steps"), "warmup_steps",
                      absl::StrCat(spec.warmup_steps, " is more than max_steps ", spec.max_steps,
                                   "; training would end within the warm-up: lower it")});
  }
}

void CheckData(const JobSpec& spec, const GivenKeys& given, std::vector<SpecFault>& faults) {
  if (spec.val_set_size > 1 && spec.val_set_size != static_cast<std::int64_t>(spec.val_set_size)) {
    faults.push_back({LineOf(given, "val_set_size"), "val_set_size",
                      absl::StrCat(spec.val_set_size,
                                   " is neither a fraction below 1 nor a whole "
                                   "number of rows; write one of them")});
  }
  if (spec.eval_steps > 0 && spec.val_set_size == 0) {
    faults.push_back({LineOf(given, "eval_steps"), "eval_steps",
                      "is given but nothing is held out to evaluate on; set val_set_size, e.g. "
                      "0.05, or leave eval_steps out"});
  }
  if (spec.sample_packing && spec.group_by_length) {
    faults.push_back({LineOf(given, "group_by_length"), "group_by_length",
                      "has no meaning with sample_packing, which leaves no padding; keep one of "
                      "the two"});
  }
  for (std::size_t i = 0; i < spec.datasets.size(); ++i) {
    const std::string key = absl::StrCat("datasets[", i, "].path");
    for (std::size_t j = 0; j < i; ++j) {
      if (spec.datasets[i].path != spec.datasets[j].path || spec.datasets[i].path.empty()) continue;
      faults.push_back({LineOf(given, key), key,
                        absl::StrCat(QuoteYaml(spec.datasets[i].path),
                                     " is named twice; remove one of the two")});
      break;
    }
  }
}

void CheckModel(const JobSpec& spec, const GivenKeys& given, std::vector<SpecFault>& faults) {
  for (const char* ending : {".bin", ".pt", ".pth", ".ckpt", ".pkl"}) {
    if (absl::EndsWith(spec.base_model, ending)) {
      faults.push_back({LineOf(given, "base_model"), "base_model",
                        absl::StrCat(QuoteYaml(spec.base_model),
                                     " is a pickle, which can run code when it is read; convert "
                                     "it to safetensors and name its directory")});
    }
  }
  if (absl::EndsWith(spec.base_model, ".safetensors")) {
    faults.push_back({LineOf(given, "base_model"), "base_model",
                      absl::StrCat(QuoteYaml(spec.base_model),
                                   " is one file of a model; name its directory, where "
                                   "config.json lies")});
  }
  if (spec.load_in_4bit && spec.load_in_8bit) {
    faults.push_back(
        {LineOf(given, "load_in_8bit"), "load_in_8bit", "stands beside load_in_4bit; choose one"});
  }
  for (const std::string& target : spec.publish.push_to) {
    if (!absl::StartsWith(target, "/") && std::count(target.begin(), target.end(), '/') != 1) {
      faults.push_back({LineOf(given, "publish.push_to"), "publish.push_to",
                        absl::StrCat("'", target,
                                     "' is neither a directory in full (/srv/models/mine) nor a "
                                     "hub's org/name")});
    }
  }
  const std::vector<std::string>& formats = spec.publish.formats;
  if (std::find(formats.begin(), formats.end(), "adapter") == formats.end()) {
    faults.push_back(
        {LineOf(given, "publish.formats"), "publish.formats",
         "leaves out the adapter, which is always published; write [adapter, merged]"});
  }
}

void CheckRanks(const JobSpec& spec, const GivenKeys& given, std::vector<SpecFault>& faults) {
  const ResourcesSpec& resources = spec.resources;
  if (resources.min_ranks > resources.ranks) {
    faults.push_back({LineOf(given, "resources.min_ranks"), "resources.min_ranks",
                      absl::StrCat(resources.min_ranks, " is more than ranks ", resources.ranks,
                                   "; lower it or raise ranks")});
  }
  if (resources.max_ranks > 0 && resources.max_ranks < resources.ranks) {
    faults.push_back({LineOf(given, "resources.max_ranks"), "resources.max_ranks",
                      absl::StrCat(resources.max_ranks, " is less than ranks ", resources.ranks,
                                   "; raise it or lower ranks")});
  }
  if (!resources.gpu_models.empty() && resources.device == "cpu") {
    faults.push_back({LineOf(given, "resources.gpu_models"), "resources.gpu_models",
                      "names GPUs, but device is cpu; write device: cuda or leave gpu_models out"});
  }
  if (spec.reproducible && HasElasticRanks(resources)) {
    faults.push_back({LineOf(given, "reproducible"), "reproducible",
                      "cannot be kept when the number of ranks may change; leave it out, or leave "
                      "out resources.min_ranks and resources.max_ranks"});
  }
}

// Keys that stand in the same map, in the table's order.
struct Section {
  std::string name;  // "" for the top
  std::vector<BoundKey> keys;
};

std::vector<Section> SectionsOf(const std::vector<BoundKey>& keys) {
  std::vector<Section> sections{{"", {}}};
  for (const BoundKey& key : keys) {
    const std::string name = key.info->key;
    const std::size_t dot = name.find('.');
    const std::string section = dot == std::string::npos ? "" : name.substr(0, dot);
    auto found = std::find_if(sections.begin(), sections.end(),
                              [&](const Section& each) { return each.name == section; });
    if (found == sections.end()) found = sections.insert(sections.end(), {section, {}});
    found->keys.push_back(key);
  }
  return sections;
}

void FormatDatasets(const JobSpec& spec, std::string& text) {
  if (spec.datasets.empty()) return;
  text += "datasets:\n";
  for (DatasetSpec dataset : spec.datasets) {
    const char* lead = "  - ";
    for (const BoundKey& key : BindDatasetKeys(dataset)) {
      const nlohmann::ordered_json value = KeyValueJson(key);
      if (value.is_null()) continue;
      absl::StrAppend(&text, lead, key.info->key, ": ", value.dump(), "\n");
      lead = "    ";
    }
  }
}

}  // namespace

std::string SpecFault::ToString() const {
  std::string text;
  if (line > 0) absl::StrAppend(&text, "line ", line, ": ");
  if (!key.empty()) absl::StrAppend(&text, key, ": ");
  return text + message;
}

JobSpecResult CheckJobSpec(absl::string_view yaml) {
  JobSpecResult result;
  YamlBounds bounds;
  bounds.bytes = kMaxJobFileBytes;
  const YamlResult tree = ParseYamlTree(yaml, bounds);
  for (const YamlFault& fault : tree.faults)
    result.faults.push_back({fault.line, "", fault.message});
  if (!result.faults.empty()) return result;

  JobSpec spec;
  GivenKeys given;
  ReadJobSpec(tree.root, spec, given, result.faults);
  if (!Given(given, "reproducible")) {
    spec.reproducible = ReproducibleByDefault(spec.resources);
  }
  CheckSchedule(spec, given, result.faults);
  CheckData(spec, given, result.faults);
  CheckModel(spec, given, result.faults);
  CheckRanks(spec, given, result.faults);

  std::stable_sort(result.faults.begin(), result.faults.end(),
                   [](const SpecFault& a, const SpecFault& b) { return a.line < b.line; });
  if (result.faults.size() > kMaxSpecFaults) {
    const std::size_t more = result.faults.size() - kMaxSpecFaults + 1;
    result.faults.resize(kMaxSpecFaults - 1);
    result.faults.push_back({0, "", absl::StrCat("and ", more, " more faults")});
  }
  if (result.faults.empty()) result.spec = std::move(spec);
  return result;
}

absl::StatusOr<JobSpec> ParseJobSpec(absl::string_view yaml) {
  JobSpecResult result = CheckJobSpec(yaml);
  if (result.spec.has_value()) return *std::move(result.spec);
  const std::string count =
      result.faults.size() == 1
          ? std::string("the job file has a fault:")
          : absl::StrCat("the job file has ", result.faults.size(), " faults:");
  return absl::InvalidArgumentError(absl::StrCat(
      count, "\n", absl::StrJoin(result.faults, "\n", [](std::string* out, const SpecFault& fault) {
        absl::StrAppend(out, "  ", fault.ToString());
      })));
}

std::string FormatJobSpec(const JobSpec& spec) {
  JobSpec values = spec;
  JobSpec defaults;
  defaults.reproducible = ReproducibleByDefault(spec.resources);
  const std::vector<Section> sections = SectionsOf(BindJobKeys(values));
  const std::vector<Section> default_sections = SectionsOf(BindJobKeys(defaults));
  std::string text;
  for (std::size_t s = 0; s < sections.size(); ++s) {
    const Section& section = sections[s];
    std::string lines;
    for (std::size_t k = 0; k < section.keys.size(); ++k) {
      const BoundKey& key = section.keys[k];
      const nlohmann::ordered_json value = KeyValueJson(key);
      if (value == KeyValueJson(default_sections[s].keys[k])) continue;
      const std::string name = key.info->key;
      absl::StrAppend(&lines, section.name.empty() ? name : "  " + name.substr(name.find('.') + 1),
                      ": ", value.dump(), "\n");
    }
    if (section.name.empty()) {
      text += lines;
      FormatDatasets(spec, text);
    } else if (!lines.empty()) {
      absl::StrAppend(&text, section.name, ":\n", lines);
    }
  }
  return text;
}

std::string SpecDigest(const JobSpec& spec) { return DigestOf(FormatJobSpec(spec)); }

ReferenceKind ClassifyReference(absl::string_view reference) {
  if (absl::StartsWith(reference, "sha256:")) return ReferenceKind::kDigest;
  for (const char* start : {"/", "./", "../", "~/"}) {
    if (absl::StartsWith(reference, start)) return ReferenceKind::kPath;
  }
  for (const char* ending : {".gguf", ".jsonl", ".json"}) {
    if (absl::EndsWith(reference, ending)) return ReferenceKind::kPath;
  }
  return ReferenceKind::kName;
}

}  // namespace offshoot
