// completion: scripts for bash, zsh and fish, made from the commands there are.
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "cli/context.h"
#include "cli/exit_code.h"

namespace offshoot::cli {
namespace {

// What may follow "offshoot submit", say: its path "submit", its verbs and options.
struct Level {
  std::string path;
  std::vector<std::pair<std::string, std::string>> words;  // and what they do
};

void CollectLevels(const CLI::App& app, const std::string& path, std::vector<Level>& levels) {
  Level level{path, {}};
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    level.words.emplace_back(sub->get_name(), sub->get_description());
  }
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      level.words.emplace_back("--" + name, option->get_description());
    }
    for (const std::string& name : option->get_snames()) {
      level.words.emplace_back("-" + name, option->get_description());
    }
  }
  levels.push_back(std::move(level));
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    CollectLevels(*sub, path.empty() ? sub->get_name() : absl::StrCat(path, " ", sub->get_name()),
                  levels);
  }
}

std::string Words(const Level& level) {
  return absl::StrJoin(level.words, " ", [](std::string* out, const auto& word) {
    absl::StrAppend(out, word.first);
  });
}

// The command path typed so far is found by taking words that are verbs; files complete the rest.
std::string BashScript(const std::vector<Level>& levels) {
  std::string cases;
  for (const Level& level : levels) {
    absl::StrAppend(&cases, "    '", level.path, "') words='", Words(level), "' ;;\n");
  }
  std::string paths;
  for (const Level& level : levels) {
    if (!level.path.empty()) absl::StrAppend(&paths, "|", level.path);
  }
  return absl::StrCat(
      "_offshoot() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} path= next word words i\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    word=${COMP_WORDS[i]}\n"
      "    next=${path:+$path }$word\n"
      "    case '",
      paths,
      "|' in *\"|$next|\"*) path=$next ;; esac\n"
      "  done\n"
      "  case $path in\n",
      cases,
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
      "}\n"
      "complete -o default -F _offshoot offshoot\n");
}

std::string ZshScript(const std::vector<Level>& levels) {
  return absl::StrCat("#compdef offshoot\nautoload -U +X bashcompinit && bashcompinit\n",
                      BashScript(levels));
}

std::string FishScript(const std::vector<Level>& levels) {
  std::string script = "complete -c offshoot -f\n";
  for (const Level& level : levels) {
    const std::string condition = level.path.empty()
                                      ? "__fish_use_subcommand"
                                      : absl::StrCat("__fish_seen_subcommand_from ",
                                                     level.path.substr(0, level.path.find(' ')));
    const std::size_t space = level.path.find(' ');
    const std::string deeper =
        space == std::string::npos
            ? ""
            : absl::StrCat("; and __fish_seen_subcommand_from ", level.path.substr(space + 1));
    for (const auto& [word, meaning] : level.words) {
      const std::string kind = word.substr(0, 2) == "--" ? absl::StrCat("-l ", word.substr(2))
                               : word[0] == '-'          ? absl::StrCat("-s ", word.substr(1))
                                                         : absl::StrCat("-a ", word);
      absl::StrAppend(&script, "complete -c offshoot -n '", condition, deeper, "' ", kind, " -d '",
                      absl::StrReplaceAll(meaning, {{"'", "\\'"}}), "'\n");
    }
  }
  for (const char* verb : {"run", "submit", "validate"}) {
    absl::StrAppend(&script, "complete -c offshoot -n '__fish_seen_subcommand_from ", verb,
                    "' -F\n");
  }
  return script;
}

}  // namespace

void AddCompletionCommand(CLI::App& app, Context& context) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "completion", "Print a completion script; in bash: source <(offshoot completion bash)");
  command->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->type_name("SHELL");
  context.SetAction(command, [&app, &context, shell] {
    std::vector<Level> levels;
    CollectLevels(app, "", levels);
    context.out() << (*shell == "bash"  ? BashScript(levels)
                      : *shell == "zsh" ? ZshScript(levels)
                                        : FishScript(levels))
                  << std::flush;
    return kOk;
  });
}

}  // namespace offshoot::cli
