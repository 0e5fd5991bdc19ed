#include "cli/explain.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/files.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/temporary_directory.h"
#include "common/trainer_spec.h"

namespace offshoot::cli {
namespace {

using ExplainJson = nlohmann::json;

constexpr absl::Duration kExplainTimeout = absl::Minutes(10);
constexpr std::size_t kMaxWaysSaid = 6;

bool IsLocal(const std::string& reference) {
  std::error_code ignored;
  return std::filesystem::exists(reference, ignored);
}

std::string GigabytesText(const ExplainJson& from) {
  return absl::StrFormat("%.2f GB", from.value("bytes", 0.0) / 1e9);
}

// The event of this name among JSON lines; null if there is none.
ExplainJson FindEvent(const std::string& lines, const std::string& name) {
  for (const absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipEmpty())) {
    ExplainJson event = ExplainJson::parse(line.begin(), line.end(), nullptr, false);
    if (event.is_object() && event.value("event", "") == name) return event;
  }
  return nullptr;
}

absl::StatusOr<std::string> RunTrainer(const std::vector<std::string>& arguments,
                                       const std::string& events_path,
                                       const std::string& log_path) {
  ProcessSpawner spawner;
  const int events = open(events_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const int log = open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  SpawnOptions options;
  options.arguments = arguments;
  options.descriptors = {{log, 1}, {log, 2}, {events, 3}};
  auto child = spawner.Spawn(options);
  close(events);
  close(log);
  RETURN_IF_ERROR(child.status());
  if (!(*child)->Wait(kExplainTimeout).has_value()) {
    (*child)->Terminate(absl::Seconds(3));
    return absl::DeadlineExceededError("the check of base model and data took over 10 minutes");
  }
  return ReadFile(events_path);
}

std::string Explanation(const ExplainJson& found) {
  std::string text = absl::StrCat(
      found.value("rows", 0), " rows to train on, ", found.value("held_out_rows", 0), " held out, ",
      found.value("trained_tokens", std::int64_t{0}), " trained tokens an epoch, ",
      found.value("total_steps", std::int64_t{0}), " steps, ",
      found.value("trainable_parameters", std::int64_t{0}), " parameters to train\n");
  const ExplainJson memory = found.value("memory", ExplainJson::object());
  for (const char* kind : {"cpu", "cuda"}) {
    const ExplainJson need = memory.value(kind, ExplainJson::object());
    if (!need.is_object() || need.empty()) continue;
    absl::StrAppend(&text, "memory of each rank on a ", kind, " device: about ",
                    GigabytesText(need), " (", need.value("parts", ""), ")\n");
    std::size_t said = 0;
    for (const ExplainJson& way : need.value("instead", ExplainJson::array())) {
      if (said++ == kMaxWaysSaid) break;
      absl::StrAppend(&text, "  ", GigabytesText(way), " with ", way.value("change", ""), "\n");
    }
  }
  for (const ExplainJson& warning : found.value("warnings", ExplainJson::array())) {
    if (warning.is_string()) {
      absl::StrAppend(&text, "warning: ", warning.get<std::string>(), "\n");
    }
  }
  absl::StrAppend(&text, "not known here: which devices the cluster has, and when they are free\n");
  return text;
}

}  // namespace

absl::StatusOr<std::string> ExplainJob(const JobSpec& spec, const ExplainOptions& options) {
  std::vector<std::string> elsewhere;
  if (!IsLocal(spec.base_model)) elsewhere.push_back(absl::StrCat("base_model ", spec.base_model));
  for (const DatasetSpec& dataset : spec.datasets) {
    if (!IsLocal(dataset.path)) elsewhere.push_back(absl::StrCat("the data set ", dataset.path));
  }
  if (!spec.init_adapter.empty() && !IsLocal(spec.init_adapter)) {
    elsewhere.push_back(absl::StrCat("init_adapter ", spec.init_adapter));
  }
  if (!elsewhere.empty()) {
    return absl::StrCat("steps and memory are not known here: ", absl::StrJoin(elsewhere, " and "),
                        elsewhere.size() == 1 ? " is" : " are",
                        " not on this machine; the check after submit will tell\n");
  }
  TrainerSpecContext context;
  context.job_id = JobId("job-explain");
  context.base_model.path = spec.base_model;
  for (const DatasetSpec& dataset : spec.datasets) {
    context.datasets.emplace_back().path = dataset.path;
  }
  if (!spec.init_adapter.empty()) context.init_adapter.emplace().path = spec.init_adapter;
  context.threads = 1;
  const TemporaryDirectory directory;
  RETURN_IF_ERROR(WriteFileAtomically(directory.File("spec.json"), TrainerSpecJson(spec, context)));
  ASSIGN_OR_RETURN(const std::string events,
                   RunTrainer({JoinPath(options.program_directory, "offshoot-trainer"), "preflight",
                               "--spec", directory.File("spec.json"), "--events-fd", "3"},
                              directory.File("events"), directory.File("log")));
  if (const ExplainJson found = FindEvent(events, "preflight"); found.is_object()) {
    return Explanation(found);
  }
  if (const ExplainJson failed = FindEvent(events, "failed"); failed.is_object()) {
    return absl::InvalidArgumentError(failed.value("message", "the check of the job failed"));
  }
  return absl::InternalError(absl::StrCat("the trainer ended without an answer: ",
                                          ReadFile(directory.File("log")).value_or("")));
}

}  // namespace offshoot::cli
