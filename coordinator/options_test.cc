#include "coordinator/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "common/files.h"
#include "common/temporary_directory.h"
#include "coordinator/net_address.h"

namespace offshoot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Options_CommandLine, WinsOverTheFile) {
  TemporaryDirectory directory;
  std::ofstream(directory.File("c.yaml"))
      << "listen: 127.0.0.1:1\nretry_budget: 7\nallowed_roots: [/a]\nlease_ms: 20000\n";
  CommandLine command_line;
  command_line.config = directory.File("c.yaml");
  command_line.listen = "127.0.0.1:2";
  command_line.allowed_roots = {"/b"};
  ProgramOptions options;
  const absl::Status status = Combine(command_line, &options);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(options.server.listen, "127.0.0.1:2");
  EXPECT_THAT(options.server.allowed_roots, ElementsAre("/a", "/b"));
  EXPECT_EQ(options.server.controller.lifecycle.retry_budget, 7);
  EXPECT_EQ(options.server.controller.lease, absl::Seconds(20));
}

TEST(Options_File, WrongKeysAndValues_AreAllNamed) {
  TemporaryDirectory directory;
  std::ofstream(directory.File("c.yaml")) << "lissten: 127.0.0.1:1\nretry_budget: -1\n";
  CommandLine command_line;
  command_line.config = directory.File("c.yaml");
  ProgramOptions options;
  const absl::Status status = Combine(command_line, &options);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("listen"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("retry_budget"));
}

TEST(Options_File, HeartbeatsRarerThanLeasesAllow_AreRefused) {
  TemporaryDirectory directory;
  std::ofstream(directory.File("c.yaml")) << "lease_ms: 5000\nheartbeat_interval_ms: 4000\n";
  CommandLine command_line;
  command_line.config = directory.File("c.yaml");
  ProgramOptions options;
  EXPECT_THAT(std::string(Combine(command_line, &options).message()), HasSubstr("lease_ms"));
}

TEST(Options_ExampleFile, IsWhatTheProgramPrints) {
  const auto file = ReadFile("configs/coordinator.yaml");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*file, DocumentSettings())
      << "write it anew: offshoot-coordinator --print-settings > configs/coordinator.yaml";
}

TEST(NetAddress_Parse, HostAndPort_InEveryForm) {
  EXPECT_EQ(ParseNetAddress("127.0.0.1:7070")->port, 7070);
  EXPECT_EQ(ParseNetAddress("[::1]:0")->host, "::1");
  EXPECT_EQ(FormatNetAddress(*ParseNetAddress("[::1]:9")), "[::1]:9");
  for (const char* wrong : {"", ":", "7070", "host:", ":7070", "host:70000", "::1:80", "host:-1"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseNetAddress(wrong).status())) << wrong;
  }
}

TEST(NetAddress_Loopback, OnlyThisMachine) {
  for (const char* inside : {"127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1"}) {
    EXPECT_TRUE(IsLoopback(*ParseNetAddress(inside))) << inside;
  }
  for (const char* outside : {"0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.com:1"}) {
    EXPECT_FALSE(IsLoopback(*ParseNetAddress(outside))) << outside;
  }
}

}  // namespace
}  // namespace offshoot
