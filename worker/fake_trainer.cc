// A trainer for tests: speaks docs/trainer-protocol.md, and misbehaves as a script says.
//
// The spec's "script" field is a list of words, carried out in order:
//   start N          the started event: first step 1 (or the resumed one + 1) of N
//   step N           metrics events up to step N
//   checkpoint N     writes a complete checkpoint of step N and announces it
//   silent N         writes a complete checkpoint of step N and announces nothing
//   contribute N     writes a file and says that it is this rank's contribution to round N
//   contributed R N  waits for rank R's contribution to round N and logs what is in the file
//   stored N         waits for checkpoint_stored N
//   wait-stop        waits for stop; then writes a checkpoint of the last step, says so, ends with
//   3 result           writes result/ and reference, the result event preflight        the
//   preflight event fail CODE        the failed event, ends with 4 log TEXT, event TEXT   to
//   stderr, to the events pipe as it is exit N, signal N, hang, ignore-sigterm, fork (a grandchild
//   that ignores SIGTERM and hangs) touch PATH       makes a file, for the test to see how far it
//   came await PATH       waits until a file is there rank R WORDS     carries WORDS out on rank R
//   only
// verify: ends with 0, or with 4 if result/ holds a file named "bad".

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "common/digest.h"
#include "common/files.h"

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

struct FakeTrainer {
  std::map<std::string, std::string> flags;
  json spec;
  std::int64_t step = 0;
  std::string control_text;
  std::map<std::pair<int, int>, std::string> contributions;  // by rank and round: the file

  std::string work() const { return flags.at("--work-dir"); }

  void Emit(const json& event) { EmitText(event.dump()); }
  void EmitText(const std::string& text) {
    const std::string line = text + "\n";
    if (write(std::stoi(flags.at("--events-fd")), line.data(), line.size()) < 0) std::_Exit(9);
  }

  std::string WriteCheckpoint(std::int64_t at) {
    char name[32];
    std::snprintf(name, sizeof(name), "step-%08lld", static_cast<long long>(at));
    const std::string path = work() + "/checkpoints/" + name;
    fs::create_directories(path + ".tmp");
    const std::string state = json{{"step", at}, {"padding", std::string(2000, 'x')}}.dump();
    std::ofstream(path + ".tmp/state.json") << state;
    const json manifest = {{"step", at},
                           {"files",
                            {{{"path", "state.json"},
                              {"digest", offshoot::DigestOf(state)},
                              {"size_bytes", state.size()}}}}};
    std::ofstream(path + ".tmp/manifest.json") << manifest.dump();
    fs::rename(path + ".tmp", path);
    step = at;
    return path;
  }

  // The next control line; ends the program when the worker is gone.
  json ReadControl() {
    const int descriptor = std::stoi(flags.at("--control-fd"));
    while (true) {
      const std::size_t end = control_text.find('\n');
      if (end != std::string::npos) {
        const json line = json::parse(control_text.substr(0, end));
        control_text.erase(0, end + 1);
        return line;
      }
      char buffer[4096];
      const ssize_t got = read(descriptor, buffer, sizeof(buffer));
      if (got <= 0) std::_Exit(7);
      control_text.append(buffer, static_cast<std::size_t>(got));
    }
  }

  void WaitForControl(const std::string& command, std::int64_t at) {
    while (true) {
      const json line = ReadControl();
      if (line["command"] == command && (at < 0 || line["step"] == at)) return;
    }
  }

  void AwaitFile(const std::string& path) {
    const int watch = inotify_init1(IN_CLOEXEC);
    inotify_add_watch(watch, fs::path(path).parent_path().c_str(), IN_CREATE | IN_MOVED_TO);
    char buffer[4096];
    while (!fs::exists(path)) {
      if (read(watch, buffer, sizeof(buffer)) < 0) std::_Exit(8);
    }
    close(watch);
  }

  void Hang() {
    while (true) pause();
  }

  void WriteResult() {
    fs::create_directories(work() + "/result");
    std::ofstream(work() + "/result/adapter_model.safetensors") << "adapter of step " << step;
    std::ofstream(work() + "/result/README.md") << "card";
    Emit({{"event", "result"},
          {"time", 0},
          {"path", work() + "/result"},
          {"first_step", 1},
          {"last_step", step},
          {"base_eval_loss", 2.5},
          {"eval_loss", 1.5},
          {"peak_memory_bytes", 1000}});
  }

  void Carry(const std::string& word, const std::string& rest) {
    const auto number = [&rest] { return std::stoll(rest); };
    if (word == "start") {
      if (spec["resume_from"].is_string()) {
        std::ifstream manifest(spec["resume_from"].get<std::string>() + "/manifest.json");
        step = json::parse(manifest)["step"];
      }
      Emit({{"event", "started"},
            {"time", 0},
            {"first_step", step + 1},
            {"total_steps", number()},
            {"rows", 1},
            {"trainable_parameters", 1}});
    } else if (word == "step") {
      while (step < number()) {
        ++step;
        Emit({{"event", "metrics"},
              {"time", 0},
              {"step", step},
              {"epoch", 0.1},
              {"train_loss", 1.0 / step},
              {"grad_norm", "nan"},
              {"learning_rate", 1e-4},
              {"tokens", 10 * step},
              {"step_seconds", 0.5},
              {"tokens_per_second", 20}});
      }
    } else if (word == "checkpoint") {
      const std::string path = WriteCheckpoint(number());
      Emit({{"event", "checkpoint"}, {"time", 0}, {"step", step}, {"path", path}});
    } else if (word == "silent") {
      WriteCheckpoint(number());
    } else if (word == "contribute") {
      const std::string path = work() + "/own-" + rest;
      std::ofstream(path) << "part of rank " << std::getenv("RANK") << " by "
                          << std::getenv("OFFSHOOT_EXCHANGE");
      Emit({{"event", "contribution"}, {"time", 0}, {"round", number()}, {"path", path}});
    } else if (word == "contributed") {
      std::istringstream words(rest);
      int rank = 0;
      int round = 0;
      words >> rank >> round;
      while (!contributions.contains({rank, round})) {
        const json line = ReadControl();
        if (line["command"] == "contribution") {
          contributions[{line["rank"].get<int>(), line["round"].get<int>()}] = line["path"];
        }
      }
      std::ifstream part(contributions[{rank, round}]);
      std::cerr << "[" << part.rdbuf() << "]" << std::endl;
    } else if (word == "stored") {
      WaitForControl("checkpoint_stored", number());
    } else if (word == "wait-stop") {
      WaitForControl("stop", -1);
      const std::string path = WriteCheckpoint(step);
      Emit({{"event", "stopped"}, {"time", 0}, {"step", step}, {"path", path}});
      std::_Exit(3);
    } else if (word == "result") {
      WriteResult();
    } else if (word == "preflight") {
      Emit({{"event", "preflight"}, {"time", 0}, {"rows", 7}, {"warnings", json::array()}});
    } else if (word == "fail") {
      Emit({{"event", "failed"},
            {"time", 0},
            {"reason_code", rest},
            {"message", "line 7 of data.jsonl is not JSON"},
            {"step", step},
            {"rows", {}}});
      std::_Exit(4);
    } else if (word == "log") {
      std::cerr << rest << std::endl;
    } else if (word == "event") {
      EmitText(rest);
    } else if (word == "exit") {
      std::_Exit(static_cast<int>(number()));
    } else if (word == "signal") {
      raise(static_cast<int>(number()));
    } else if (word == "hang") {
      Hang();
    } else if (word == "ignore-sigterm") {
      signal(SIGTERM, SIG_IGN);
    } else if (word == "fork") {
      if (fork() == 0) {
        setsid();  // out of the group, as a daemon would
        signal(SIGTERM, SIG_IGN);
        Hang();
      }
    } else if (word == "touch") {
      std::ofstream{rest};
    } else if (word == "rank") {
      const std::size_t space = rest.find(' ');
      const std::string wanted = rest.substr(0, space);
      if (wanted == std::getenv("RANK")) CarryText(rest.substr(space + 1));
    } else if (word == "await") {
      AwaitFile(rest);
    } else {
      std::cerr << "unknown word in the script: " << word << std::endl;
      std::_Exit(2);
    }
  }

  void CarryText(const std::string& text) {
    const std::size_t space = text.find(' ');
    Carry(text.substr(0, space), space == std::string::npos ? "" : text.substr(space + 1));
  }

  int Run() {
    for (const json& item : spec.value("script", json::array())) {
      CarryText(item.get<std::string>());
    }
    return 0;
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const std::string command = argv[1];
  FakeTrainer trainer;
  for (int index = 2; index + 1 < argc; index += 2) trainer.flags[argv[index]] = argv[index + 1];
  if (command == "verify") {
    return fs::exists(trainer.flags.at("--result") + "/bad") ? 4 : 0;
  }
  std::ifstream file(trainer.flags.at("--spec"));
  trainer.spec = json::parse(file);
  return trainer.Run();
}
