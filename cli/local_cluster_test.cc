// The supervision of children, with shell scripts in the programs' places.
#include "cli/local_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/temporary_directory.h"

namespace offshoot::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Says where it listens (or would), notes its pid and arguments, and stays.
constexpr char kCoordinator[] = R"(#!/bin/sh
echo "$@" >> "$0.arguments"
echo $$ > "$0.pid"
while [ $# -gt 0 ]; do
  [ "$1" = --address-file ] && printf 127.0.0.1:4242 > "$2.tmp" && mv "$2.tmp" "$2"
  shift
done
exec sleep 1000
)";
constexpr char kWorker[] = R"(#!/bin/sh
echo "$@" >> "$0.arguments"
echo $$ > "$0.pid"
exec sleep 1000
)";

class LocalClusterTest : public testing::Test {
 protected:
  LocalClusterTest() {
    options_.state_directory = directory_.File("state");
    options_.program_directory = directory_.path();
    options_.start_timeout = absl::Seconds(20);
    Program("offshoot-coordinator", kCoordinator);
    Program("offshoot-worker", kWorker);
  }
  void Program(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileAtomically(directory_.File(name), text).ok());
    ASSERT_EQ(chmod(directory_.File(name).c_str(), 0755), 0);
  }
  std::string Arguments(const std::string& name) {
    const auto text = ReadFile(directory_.File(name + ".arguments"));
    return text.ok() ? *text : "";
  }
  // The pid that the program noted, once it is another than `old`.
  pid_t Pid(const std::string& name, pid_t old = 0) {
    for (int i = 0; i < 4000; ++i) {
      const auto text = ReadFile(directory_.File(name + ".pid"));
      int pid = 0;
      if (text.ok() && absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &pid) && pid != old) {
        return pid;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    ADD_FAILURE() << name << " noted no pid";
    return 0;
  }

  TemporaryDirectory directory_;
  LocalClusterOptions options_;
};

TEST_F(LocalClusterTest, Started_ProgramsGetTheirFlags_StoppedTheyAreGone) {
  options_.devices = "cpu:0@2";
  auto cluster = LocalCluster::Start(options_);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  EXPECT_EQ((*cluster)->address(), "127.0.0.1:4242");
  const auto coordinator = IdentifyProcess(Pid("offshoot-coordinator"));
  const auto worker = IdentifyProcess(Pid("offshoot-worker"));
  EXPECT_THAT(Arguments("offshoot-coordinator"), HasSubstr("--listen 127.0.0.1:0 --state-dir"));
  EXPECT_THAT(Arguments("offshoot-coordinator"), HasSubstr("--allowed-root /"));
  EXPECT_THAT(Arguments("offshoot-worker"), HasSubstr("--coordinator 127.0.0.1:4242"));
  EXPECT_THAT(Arguments("offshoot-worker"), HasSubstr("--name worker-1 --devices cpu:0@2"));
  cluster->reset();
  EXPECT_FALSE(ProcessIsAlive(*coordinator));
  EXPECT_FALSE(ProcessIsAlive(*worker));
}

TEST_F(LocalClusterTest, ChildKilled_IsStartedAgainOnTheSamePort) {
  auto cluster = LocalCluster::Start(options_);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const pid_t coordinator = Pid("offshoot-coordinator");
  kill(coordinator, SIGKILL);
  EXPECT_NE(Pid("offshoot-coordinator", coordinator), 0);
  EXPECT_THAT(Arguments("offshoot-coordinator"), HasSubstr("--listen 127.0.0.1:4242"));
  const pid_t worker = Pid("offshoot-worker");
  kill(worker, SIGKILL);
  EXPECT_NE(Pid("offshoot-worker", worker), 0);
  EXPECT_TRUE((*cluster)->failure().ok());
}

TEST_F(LocalClusterTest, ChildDiesAgainAndAgain_IsAFailureWithItsLog) {
  Program("offshoot-worker", "#!/bin/sh\necho the disk is on fire\nexit 1\n");
  options_.max_restarts = 2;
  auto cluster = LocalCluster::Start(options_);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  for (int i = 0; i < 4000 && (*cluster)->failure().ok(); ++i) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  const std::string text((*cluster)->failure().message());
  EXPECT_THAT(text, HasSubstr("the worker-1 ended with exit code 1"));
  EXPECT_THAT(text, HasSubstr("the disk is on fire"));
}

TEST_F(LocalClusterTest, CoordinatorEndsAtOnce_StartSaysWhy) {
  Program("offshoot-coordinator", "#!/bin/sh\necho cannot open the store\nexit 2\n");
  const auto cluster = LocalCluster::Start(options_);
  ASSERT_FALSE(cluster.ok());
  EXPECT_THAT(std::string(cluster.status().message()), HasSubstr("cannot open the store"));
}

TEST_F(LocalClusterTest, ProgramMissing_IsNamed) {
  options_.program_directory = "/nowhere";
  const auto cluster = LocalCluster::Start(options_);
  EXPECT_THAT(std::string(cluster.status().message()), HasSubstr("/nowhere/offshoot-coordinator"));
}

TEST_F(LocalClusterTest, SecondRunOnTheSameState_IsRefused) {
  auto first = LocalCluster::Start(options_);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = LocalCluster::Start(options_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another `offshoot run` uses"));
}

TEST(ShareOutDevices, AmongWorkers_InOrder) {
  EXPECT_THAT(ShareOutDevices("cpu:0@1,cpu:1@1,cuda:0", 2, 8).value(),
              ElementsAre("cpu:0@1", "cpu:1@1,cuda:0"));
  EXPECT_THAT(ShareOutDevices("", 1, 8).value(), ElementsAre(""));
  EXPECT_THAT(ShareOutDevices("", 2, 8).value(), ElementsAre("cpu:0@4", "cpu:0@4"));
  EXPECT_THAT(ShareOutDevices("", 3, 2).value(), ElementsAre("cpu:0@1", "cpu:0@1", "cpu:0@1"));
  EXPECT_FALSE(ShareOutDevices("cpu:0", 2, 8).ok());
}

}  // namespace
}  // namespace offshoot::cli
