#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "common/nearest.h"

namespace offshoot::cli {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 ok, 1 the job failed, 2 wrong use, 3 the coordinator cannot be reached,\n"
    "130 interrupted.";

// "did you mean list?" for a verb that is not there.
std::string VerbRemedy(const CLI::App& app, const std::vector<std::string>& arguments) {
  std::vector<std::string> verbs;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    verbs.push_back(sub->get_name());
  }
  if (arguments.empty() || arguments[0].empty() || arguments[0][0] == '-') return "";
  if (std::find(verbs.begin(), verbs.end(), arguments[0]) != verbs.end()) return "";
  const std::string nearest = NearestWord(arguments[0], verbs);
  return nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?");
}

}  // namespace

int RunCli(const std::vector<std::string>& arguments, Context& context) {
  CLI::App app("Offshoot fine-tunes open-weight language models and publishes the results.",
               "offshoot");
  app.set_version_flag("--version", std::string("offshoot ") + OFFSHOOT_VERSION);
  app.require_subcommand(1);
  app.footer(kFooter);
  const auto is_asked_for = [&](const CLI::App* command) {
    return !arguments.empty() && command->get_name() == arguments[0];
  };
  // Only as far as the verb: to set up all of them takes as long as many a command.
  for (const auto add : {AddRunCommand, AddValidateCommand, AddSubmitCommand, AddJobCommands,
                         AddStreamCommands, AddWorkerCommands, AddModelCommands,
                         AddDerivativeCommands, AddCaCommand, AddCompletionCommand}) {
    add(app, context);
    if (!app.get_subcommands(is_asked_for).empty()) break;
  }
  try {
    // CLI11 takes them last first.
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(std::move(reversed));
  } catch (const CLI::Success& asked) {  // --help, --version
    return app.exit(asked, context.out(), context.err()) == 0 ? kOk : kWrongUse;
  } catch (const CLI::ParseError& error) {
    context.err() << "offshoot: " << error.what() << VerbRemedy(app, arguments)
                  << "\nRun with --help for what there is.\n"
                  << std::flush;
    return kWrongUse;
  }
  return context.RunAction();
}

}  // namespace offshoot::cli
