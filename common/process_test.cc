#include "common/process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/files.h"
#include "common/temporary_directory.h"

namespace offshoot {
namespace {

constexpr absl::Duration kLong = absl::Seconds(20);  // a failing test's bound, never waited out

SpawnOptions Shell(const std::string& script) { return {{"/bin/sh", "-c", script}, {}, {}, {}}; }

// Reads until the end of the pipe.
std::string Drain(int descriptor) {
  std::string text;
  char buffer[512];
  ssize_t got;
  while ((got = read(descriptor, buffer, sizeof(buffer))) > 0) text.append(buffer, got);
  close(descriptor);
  return text;
}

// Runs a script with stdout in a pipe and gives what it wrote.
std::string OutputOf(ProcessSpawner& spawner, SpawnOptions options) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return "no pipe";
  options.descriptors.emplace_back(ends[1], 1);
  auto child = spawner.Spawn(options);
  close(ends[1]);
  if (!child.ok()) return child.status().ToString();
  std::string text = Drain(ends[0]);
  (*child)->Wait(kLong);
  return text;
}

TEST(Spawn, ProgramEnds_GivesItsExitCode) {
  ProcessSpawner spawner;
  auto child = spawner.Spawn(Shell("exit 7"));
  ASSERT_TRUE(child.ok()) << child.status();
  const auto status = (*child)->Wait(kLong);
  ASSERT_TRUE(status.has_value());
  EXPECT_FALSE(status->signalled);
  EXPECT_EQ(status->code, 7);
  EXPECT_EQ((*child)->TryWait()->code, 7);  // asked again
}

TEST(Spawn, ProgramMissing_IsNotFoundAndNamesIt) {
  ProcessSpawner spawner;
  const auto child = spawner.Spawn({{"/nowhere/program"}, {}, {}, {}});
  EXPECT_EQ(child.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(child.status().message()), testing::HasSubstr("/nowhere/program"));
}

TEST(Spawn, ProgramNotExecutable_IsNotFound) {
  ProcessSpawner spawner;
  TemporaryDirectory directory;
  ASSERT_TRUE(WriteFileAtomically(directory.File("f"), "x").ok());
  EXPECT_EQ(spawner.Spawn({{directory.File("f")}, {}, {}, {}}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(Spawn, EnvironmentAndDirectory_AreTheChilds) {
  ProcessSpawner spawner;
  SpawnOptions options = Shell("echo $OFFSHOOT_TEST_VARIABLE; pwd");
  options.environment = {{"OFFSHOOT_TEST_VARIABLE", "a b"}};
  options.working_directory = "/";
  EXPECT_EQ(OutputOf(spawner, options), "a b\n/\n");
}

TEST(Spawn, OnlyNamedDescriptors_AreOpen) {
  ProcessSpawner spawner;
  const int leaked = open("/dev/null", O_RDONLY);  // not close-on-exec
  ASSERT_GE(leaked, 3);
  // Of the shell, which waits meanwhile: a pipe would be one more descriptor of its own.
  SpawnOptions options = Shell("ls /proc/$$/fd; true");
  const int named = open("/dev/null", O_RDONLY | O_CLOEXEC);
  options.descriptors = {{named, 9}};
  // 0, 1, 2 and the one that was named.
  EXPECT_EQ(OutputOf(spawner, options), "0\n1\n2\n9\n");
  close(leaked);
  close(named);
}

TEST(Spawn, Stdin_IsEmpty) {
  ProcessSpawner spawner;
  EXPECT_EQ(OutputOf(spawner, Shell("cat; echo end")), "end\n");
}

TEST(ChildProcess, Pidfd_BecomesReadableAtTheEnd) {
  ProcessSpawner spawner;
  auto child = spawner.Spawn(Shell("exit 0"));
  ASSERT_TRUE(child.ok());
  pollfd ready{(*child)->pidfd(), POLLIN, 0};
  EXPECT_EQ(poll(&ready, 1, 20000), 1);
  EXPECT_TRUE((*child)->TryWait().has_value());
}

TEST(Terminate, ChildIgnoresSigterm_IsKilledAfterGrace) {
  ProcessSpawner spawner;
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  SpawnOptions options = Shell("trap '' TERM; echo ready; while :; do sleep 1; done");
  options.descriptors = {{ends[1], 1}};
  auto child = spawner.Spawn(options);
  ASSERT_TRUE(child.ok());
  close(ends[1]);
  char buffer[16];
  ASSERT_GT(read(ends[0], buffer, sizeof(buffer)), 0);  // the trap is set
  (*child)->Terminate(absl::Milliseconds(50));
  const auto status = (*child)->TryWait();
  ASSERT_TRUE(status.has_value());
  EXPECT_TRUE(status->signalled);
  EXPECT_EQ(status->code, SIGKILL);
  Drain(ends[0]);  // ends only when the whole group is gone
}

TEST(ChildProcess, LeaderEnds_GroupGoesWithIt) {
  ProcessSpawner spawner;
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  SpawnOptions options = Shell("sleep 1000 & exit 0");
  options.descriptors = {{ends[1], 1}};
  auto child = spawner.Spawn(options);
  ASSERT_TRUE(child.ok());
  close(ends[1]);
  EXPECT_TRUE((*child)->Wait(kLong).has_value());
  EXPECT_EQ(Drain(ends[0]), "");  // the sleeper held the pipe open
}

TEST(ProcessSpawner, Destroyed_ItsChildrenGetSigterm) {
  auto spawner = std::make_unique<ProcessSpawner>();
  auto child = spawner->Spawn(Shell("exec sleep 1000"));
  ASSERT_TRUE(child.ok());
  spawner.reset();
  const auto status = (*child)->Wait(kLong);
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(status->code, SIGTERM);
}

TEST(ProcessIdentity, EndedProcess_IsNotAlive) {
  ProcessSpawner spawner;
  auto child = spawner.Spawn(Shell("exec sleep 1000"));
  ASSERT_TRUE(child.ok());
  const ProcessIdentity identity = (*child)->identity();
  EXPECT_TRUE(ProcessIsAlive(identity));
  EXPECT_EQ(IdentifyProcess(identity.pid), identity);
  ProcessIdentity other = identity;
  ++other.start_ticks;
  EXPECT_FALSE(ProcessIsAlive(other));
  SignalProcessGroup(other, SIGKILL);  // another process by that number: untouched
  EXPECT_FALSE((*child)->TryWait().has_value());
  SignalProcessGroup(identity, SIGKILL);
  EXPECT_TRUE((*child)->Wait(kLong).has_value());
  EXPECT_FALSE(ProcessIsAlive(identity));
}

TEST(ProgramDirectory, OfThisTest_HoldsIt) {
  EXPECT_TRUE(PathExists(ProgramDirectory() + "/common_test"));
}

}  // namespace
}  // namespace offshoot
