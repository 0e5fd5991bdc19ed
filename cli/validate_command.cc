// validate: the same checks as the coordinator's, without one.
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "cli/explain.h"
#include "cli/format.h"
#include "cli/job_file.h"
#include "common/files.h"
#include "common/job_spec_table.h"
#include "common/process.h"

namespace offshoot::cli {
namespace {

struct ValidateOptions {
  std::string job_file;
  bool keys = false;
  bool explain = false;
};

int PrintKeys(const Context& context) {
  std::vector<std::vector<std::string>> rows{{"KEY", "VALUE", "UNIT"}};
  JobSpec spec;
  DatasetSpec dataset;
  for (const BoundKey& key : BindDatasetKeys(dataset)) {
    rows.push_back(
        {absl::StrCat("datasets[].", key.info->key), AllowedValues(*key.info), key.info->unit});
  }
  for (const BoundKey& key : BindJobKeys(spec)) {
    rows.push_back({key.info->key, AllowedValues(*key.info), key.info->unit});
  }
  context.out() << FormatTable(rows) << std::flush;
  return kOk;
}

int ValidateAsJson(const Context& context, const std::string& yaml, const std::string& path) {
  nlohmann::ordered_json answer;
  answer["valid"] = true;
  answer["faults"] = nlohmann::ordered_json::array();
  for (const SpecFault& fault : CheckJobSpec(yaml).faults) {
    answer["faults"].push_back(
        {{"line", fault.line}, {"key", fault.key}, {"message", fault.message}});
  }
  if (answer["faults"].empty()) {
    const auto spec = LoadJobText(yaml, path);
    if (!spec.ok()) {
      answer["faults"].push_back(
          {{"line", 0}, {"key", ""}, {"message", std::string(spec.status().message())}});
    }
  }
  answer["valid"] = answer["faults"].empty();
  context.out() << answer.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n"
                << std::flush;
  return answer["valid"] ? kOk : kWrongUse;
}

int Validate(const Context& context, const ValidateOptions& options) {
  if (options.keys) return PrintKeys(context);
  if (options.job_file.empty()) {
    return context.Fail(absl::InvalidArgumentError("name a job file, or say --keys"));
  }
  const absl::StatusOr<std::string> yaml = ReadFile(options.job_file);
  if (!yaml.ok()) return context.Fail(yaml.status());
  if (context.json()) return ValidateAsJson(context, *yaml, options.job_file);
  const absl::StatusOr<JobSpec> spec = LoadJobText(*yaml, options.job_file);
  if (!spec.ok()) return context.Fail(spec.status());
  context.out() << options.job_file << " is valid\n" << std::flush;
  if (options.explain) {
    const auto explained = ExplainJob(*spec, {ProgramDirectory()});
    if (!explained.ok()) return context.Fail(explained.status());
    context.out() << *explained << std::flush;
  }
  return kOk;
}

}  // namespace

void AddValidateCommand(CLI::App& app, Context& context) {
  auto options = std::make_shared<ValidateOptions>();
  CLI::App* command =
      app.add_subcommand("validate", "Check a job file, without a coordinator; all faults at once");
  command->add_option("job-file", options->job_file, "the job file (docs/job-file.md)")
      ->type_name("JOB.yaml");
  command->add_flag("--keys", options->keys, "list the keys of a job file");
  command->add_flag("--explain", options->explain,
                    "also say what the job needs: steps and memory, and what would need less");
  context.AddOutputOption(command);
  context.SetAction(command, [&context, options] { return Validate(context, *options); });
}

}  // namespace offshoot::cli
