// How fast this machine's devices are: each is measured once by `offshoot-trainer calibrate`, about
// a second, only after the worker has had nothing to do for a while, and given up at once when work
// comes. Answers are kept in DIRECTORY, one file for device, threads and trainer program: another
// trainer is measured anew. Driven by the worker's loop; not thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "offshoot/v1/cluster.pb.h"
#include "worker/trainer_process.h"

namespace offshoot::worker {

struct CalibrationOptions {
  std::string directory;
  std::string trainer_program;
  absl::Duration idle = absl::InfiniteDuration();  // before a measurement; infinite: never
};

class Calibration : private TrainerListener {
 public:
  // on_exit is called from another thread when a measurement has ended: then call OnTick.
  // launcher must outlive it.
  Calibration(CalibrationOptions options, TrainerLauncher& launcher, std::function<void()> on_exit);
  ~Calibration() override;

  // Puts in the speeds that are known (TFLOP/s) and remembers the devices whose are not.
  void FillKnown(v1::Inventory& inventory);

  // busy: attempts are here. Starts, takes in or gives up a measurement; gives what was learned.
  std::map<std::string, double> OnTick(bool busy, absl::Time now);
  // Gives up what runs; on_exit is not called any more.
  void Stop() { running_.reset(); }
  // When OnTick wants to be called next.
  absl::Time deadline() const { return deadline_; }

 private:
  struct Unknown {
    std::string device_id;
    int threads = 1;
    std::string path;  // of the answer
    int tries = 0;
  };

  void OnTrainerEvent(int, const TrainerEvent&) override {}
  void OnTrainerLog(std::int64_t, absl::string_view) override {}
  void OnTrainerExited(const TrainerExit&) override { on_exit_(); }
  void Begin();

  const CalibrationOptions options_;
  TrainerLauncher& launcher_;
  const std::function<void()> on_exit_;
  std::vector<Unknown> unknown_;  // the one being measured is the first
  std::unique_ptr<TrainerProcess> running_;
  absl::Time began_;
  absl::Time deadline_ = absl::InfiniteFuture();
  std::optional<absl::Time> idle_since_;
};

}  // namespace offshoot::worker
