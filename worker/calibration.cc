#include "worker/calibration.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/files.h"

namespace offshoot::worker {
namespace {

// A measurement that takes longer has hung.
constexpr absl::Duration kLongestMeasurement = absl::Seconds(60);
constexpr int kMostMeasurements = 3;  // of a device that gives no answer

// TFLOP/s; 0: the file is not there or says nothing.
double ReadSpeed(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return 0;
  const nlohmann::json answer = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!answer.is_object()) return 0;
  const auto speed = answer.find("tflops");
  if (speed == answer.end() || !speed->is_number()) return 0;
  const double value = speed->get<double>();
  return std::isfinite(value) && value > 0 ? value : 0;
}

// Changes when another program stands there.
std::string ProgramMark(const std::string& program) {
  struct stat facts = {};
  if (stat(program.c_str(), &facts) != 0) return program;
  return absl::StrCat(program, "\n", facts.st_size, "\n", facts.st_mtim.tv_sec, "\n",
                      facts.st_mtim.tv_nsec);
}

}  // namespace

Calibration::Calibration(CalibrationOptions options, TrainerLauncher& launcher,
                         std::function<void()> on_exit)
    : options_(std::move(options)), launcher_(launcher), on_exit_(std::move(on_exit)) {}

Calibration::~Calibration() = default;

void Calibration::FillKnown(v1::Inventory& inventory) {
  const std::string program = ProgramMark(options_.trainer_program);
  for (v1::Device& device : *inventory.mutable_devices()) {
    const std::string mark =
        DigestOf(absl::StrCat(device.device_id(), "\n", device.model(), "\n", device.threads(),
                              "\n", device.driver_version(), "\n", program));
    const std::string path =
        JoinPath(options_.directory, absl::StrCat(mark.substr(mark.find(':') + 1), ".json"));
    if (const double speed = ReadSpeed(path); speed > 0) {
      device.set_speed(speed);
    } else {
      unknown_.push_back(Unknown{device.device_id(), std::max(1, device.threads()), path});
    }
  }
  if (options_.idle != absl::InfiniteDuration() && !unknown_.empty()) {
    deadline_ = absl::InfinitePast();
  }
}

std::map<std::string, double> Calibration::OnTick(bool busy, absl::Time now) {
  std::map<std::string, double> learned;
  if (options_.idle == absl::InfiniteDuration() || unknown_.empty()) return learned;
  if (running_ != nullptr) {
    const double speed = ReadSpeed(unknown_.front().path);
    const bool over = speed > 0 || running_->identities().empty() ||
                      !ProcessIsAlive(running_->identities().front());
    if (!over && !busy && now < began_ + kLongestMeasurement) return learned;
    running_.reset();  // kills what still runs
    if (speed > 0) {
      spdlog::info("{} multiplies at {:.2f} TFLOP/s", unknown_.front().device_id, speed);
      learned[unknown_.front().device_id] = speed;
      unknown_.erase(unknown_.begin());
    } else if (!busy && ++unknown_.front().tries >= kMostMeasurements) {
      spdlog::warn("{} could not be measured; placement goes without its speed",
                   unknown_.front().device_id);
      unknown_.erase(unknown_.begin());
    }
  }
  if (busy) idle_since_.reset();
  if (!busy && !idle_since_) idle_since_ = now;
  if (unknown_.empty()) {
    deadline_ = absl::InfiniteFuture();
  } else if (!idle_since_) {
    deadline_ = now + options_.idle;
  } else if (now < *idle_since_ + options_.idle) {
    deadline_ = *idle_since_ + options_.idle;
  } else {
    began_ = now;
    deadline_ = now + kLongestMeasurement;
    Begin();
  }
  return learned;
}

void Calibration::Begin() {
  const Unknown& next = unknown_.front();
  TrainerCommand command;
  command.program = options_.trainer_program;
  command.protocol = false;
  command.log_path = JoinPath(options_.directory, "log");
  const bool on_gpu = next.device_id.rfind("cuda:", 0) == 0;
  TrainerRank& rank = command.ranks.emplace_back();
  rank.arguments = {"calibrate",
                    "--device",
                    on_gpu ? next.device_id : "cpu",
                    "--threads",
                    absl::StrCat(next.threads),
                    "--out",
                    next.path};
  rank.environment = {{"OMP_NUM_THREADS", absl::StrCat(next.threads)},
                      {"OMP_WAIT_POLICY", "passive"}};
  auto launched = launcher_.Launch(command, *this);
  if (launched.ok()) {
    running_ = *std::move(launched);
    return;
  }
  spdlog::warn("{} could not be measured: {}", next.device_id,
               std::string(launched.status().message()));
  unknown_.clear();  // nor could another
}

}  // namespace offshoot::worker
