#include "worker/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "common/files.h"
#include "common/temporary_directory.h"

namespace offshoot::worker {
namespace {

using testing::Contains;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

// Writes the answer it is told to, or none.
class AnsweringLauncher : public TrainerLauncher {
 public:
  absl::StatusOr<std::unique_ptr<TrainerProcess>> Launch(const TrainerCommand& command,
                                                         TrainerListener&) override {
    ++launches;
    arguments = command.ranks.at(0).arguments;
    if (!answer.empty()) {
      EXPECT_TRUE(WriteFileAtomically(arguments.back(), answer).ok());
    }
    return std::make_unique<Ended>();
  }

  int launches = 0;
  std::string answer;
  std::vector<std::string> arguments;

 private:
  class Ended : public TrainerProcess {
    std::vector<ProcessIdentity> identities() const override { return {}; }
    void SendControl(const std::string&) override {}
    void Terminate(absl::Duration) override {}
  };
};

class CalibrationTest : public testing::Test {
 protected:
  static v1::Inventory Devices() {
    v1::Inventory inventory;
    inventory.add_devices()->set_device_id("cpu:0");
    inventory.mutable_devices(0)->set_threads(2);
    return inventory;
  }
  std::unique_ptr<Calibration> Make(absl::Duration idle = absl::Seconds(10)) {
    return std::make_unique<Calibration>(
        CalibrationOptions{directory_.path(), "/no/such/trainer", idle}, launcher_, [] {});
  }

  const TemporaryDirectory directory_;
  AnsweringLauncher launcher_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
};

TEST_F(CalibrationTest, IdleWorker_MeasuresEachDeviceOnceAndRemembers) {
  launcher_.answer = "{\"tflops\": 1.5}";
  v1::Inventory inventory = Devices();
  const auto calibration = Make();
  calibration->FillKnown(inventory);
  EXPECT_EQ(inventory.devices(0).speed(), 0);
  EXPECT_THAT(calibration->OnTick(false, now_), IsEmpty());
  EXPECT_EQ(calibration->deadline(), now_ + absl::Seconds(10));
  EXPECT_EQ(launcher_.launches, 0);
  now_ += absl::Seconds(10);
  EXPECT_THAT(calibration->OnTick(false, now_), IsEmpty());
  EXPECT_EQ(launcher_.launches, 1);
  EXPECT_THAT(launcher_.arguments, Contains("2"));
  EXPECT_THAT(calibration->OnTick(false, now_), UnorderedElementsAre(Pair("cpu:0", 1.5)));
  EXPECT_EQ(calibration->deadline(), absl::InfiniteFuture());
  Make()->FillKnown(inventory);
  EXPECT_EQ(inventory.devices(0).speed(), 1.5);
}

TEST_F(CalibrationTest, Work_IsNeverMeasuredBesides) {
  v1::Inventory inventory = Devices();
  const auto calibration = Make();
  calibration->FillKnown(inventory);
  for (int round = 0; round < 5; ++round) {
    calibration->OnTick(/*busy=*/true, now_);
    now_ += absl::Minutes(1);
  }
  EXPECT_EQ(launcher_.launches, 0);
  calibration->OnTick(false, now_);
  calibration->OnTick(false, now_ += absl::Seconds(10));
  EXPECT_EQ(launcher_.launches, 1);
  calibration->OnTick(true, now_);  // given up, and begun again when all is quiet
  calibration->OnTick(false, now_);
  EXPECT_EQ(launcher_.launches, 1);
  EXPECT_EQ(calibration->deadline(), now_ + absl::Seconds(10));
}

TEST_F(CalibrationTest, DeviceWithoutAnAnswer_IsLeftAloneAfterAFewTries) {
  v1::Inventory inventory = Devices();
  const auto calibration = Make(absl::ZeroDuration());
  calibration->FillKnown(inventory);
  for (int round = 0; round < 20; ++round) calibration->OnTick(false, now_ += absl::Seconds(1));
  EXPECT_EQ(launcher_.launches, 3);
  EXPECT_EQ(calibration->deadline(), absl::InfiniteFuture());
}

TEST_F(CalibrationTest, WithoutAnIdleTime_NothingIsMeasured) {
  v1::Inventory inventory = Devices();
  const auto calibration = Make(absl::InfiniteDuration());
  calibration->FillKnown(inventory);
  calibration->OnTick(false, now_);
  calibration->OnTick(false, now_ + absl::Hours(100));
  EXPECT_EQ(launcher_.launches, 0);
}

}  // namespace
}  // namespace offshoot::worker
