// offshoot-trainer: one job in one process. docs/trainer-protocol.md is its contract.

#include <cstdio>
#include <string>
#include <vector>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/failure.h"
#include "trainer/heap.h"

namespace offshoot::trainer {
namespace {

struct Command {
  const char* name;
  int (*run)(const std::vector<std::string>& words);
  const char* summary;
};

constexpr Command kCommands[] = {
    {"train", RunTrain, "trains an adapter and exports the derivative"},
    {"preflight", RunPreflight, "checks base model and data without training"},
    {"calibrate", RunCalibrate, "measures how fast a device is, in about a second"},
    {"logits", RunLogits, "the logits of given tokens, as a safetensors file"},
    {"generate", RunGenerate, "the model's answer to a prompt"},
    {"score", RunScore, "loss and perplexity of a model on a data set"},
    {"merge", RunMerge, "base and adapter as one plain model"},
    {"verify", RunVerify, "checks exported files against the trained model"},
};

void PrintHelp(std::FILE* out) {
  std::fprintf(out, "offshoot-trainer %s: fine-tunes one model in one process\n\n",
               OFFSHOOT_VERSION);
  for (const Command& command : kCommands) {
    std::fprintf(out, "  %-12s%s\n", command.name, command.summary);
  }
  std::fprintf(out, "\noffshoot-trainer COMMAND --help lists a command's arguments.\n");
}

int Dispatch(const std::vector<std::string>& words) {
  if (words.empty()) {
    PrintHelp(stderr);
    return kExitUsage;
  }
  if (words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    PrintHelp(stdout);
    return kExitDone;
  }
  if (words[0] == "--version") {
    std::printf("offshoot-trainer %s\n", OFFSHOOT_VERSION);
    return kExitDone;
  }
  for (const Command& command : kCommands) {
    if (words[0] == command.name) {
      return command.run(std::vector<std::string>(words.begin() + 1, words.end()));
    }
  }
  throw UsageError("'" + words[0] + "' is no command. See offshoot-trainer --help.");
}

int Main(int argc, char** argv) {
  try {
    return Dispatch(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const UsageError& error) {
    std::fprintf(stderr, "offshoot-trainer: %s\n", error.what());
    return kExitUsage;
  } catch (...) {
    const Failure failure = DescribeCurrentException();
    std::fprintf(stderr, "offshoot-trainer: %s: %s\n", ReasonCode(failure.reason),
                 failure.message.c_str());
    return kExitFailed;
  }
}

}  // namespace
}  // namespace offshoot::trainer

int main(int argc, char** argv) {
  offshoot::trainer::SetUpHeap();
  return offshoot::trainer::Main(argc, argv);
}
