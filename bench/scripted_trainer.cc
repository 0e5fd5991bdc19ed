// A trainer that trains nothing and ends at once: what is measured is everything around it. Speaks
// docs/trainer-protocol.md. For `train` it leaves the time its process began, in microseconds since
// 1970, in stamps/<job> beside its own program.
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

void Emit(int descriptor, const json& event) {
  const std::string line = event.dump() + "\n";
  if (write(descriptor, line.data(), line.size()) < 0) std::_Exit(9);
}

}  // namespace

int main(int argc, char** argv) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  if (argc < 2) return 2;
  const std::string command = argv[1];
  if (command == "verify") return 0;
  std::map<std::string, std::string> flags;
  for (int i = 2; i + 1 < argc; i += 2) flags[argv[i]] = argv[i + 1];
  const int events = std::atoi(flags["--events-fd"].c_str());
  if (command == "preflight") {
    Emit(events, {{"event", "preflight"}, {"time", 0}, {"rows", 1}, {"warnings", json::array()}});
    return 0;
  }
  std::ifstream file(flags["--spec"]);
  const json spec = json::parse(file);
  const fs::path stamps = fs::path(argv[0]).parent_path() / "stamps";
  const std::string job = spec["job_id"];
  if (fs::exists(stamps)) {
    std::ofstream(stamps / (job + ".part")) << now.tv_sec * 1'000'000 + now.tv_nsec / 1000;
    fs::rename(stamps / (job + ".part"), stamps / job);
  }
  Emit(events, {{"event", "started"},
                {"time", 0},
                {"first_step", 1},
                {"total_steps", 1},
                {"rows", 1},
                {"trainable_parameters", 1}});
  const std::string result = flags["--work-dir"] + "/result";
  fs::create_directories(result);
  std::ofstream(result + "/adapter_model.safetensors") << "adapter of " << job;
  Emit(events, {{"event", "result"},
                {"time", 0},
                {"path", result},
                {"first_step", 1},
                {"last_step", 1},
                {"peak_memory_bytes", 1000}});
  return 0;
}
