#include "common/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace offshoot {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

struct Fixture {
  std::string listen = "127.0.0.1:7070";
  std::string level = "info";
  std::int64_t jobs = 10;
  double part = 0.5;
  bool insecure = false;
  absl::Duration lease = absl::Seconds(10);
  std::int64_t cache_bytes = 1 << 20;
  std::vector<std::string> roots;
  std::map<std::string, std::string> labels;
  Settings settings;

  Fixture() {
    settings.AddText("listen", &listen, "Where to listen.");
    settings.AddChoice("log_level", &level, {"debug", "info"}, "How much to log.");
    settings.AddInteger("max_jobs", &jobs, 1, 100, "jobs", "Jobs kept.");
    settings.AddNumber("part", &part, 0, 1, "", "A part.");
    settings.AddTruth("insecure", &insecure, "Without TLS.");
    settings.AddMilliseconds("lease_ms", &lease, absl::Seconds(1), absl::Minutes(1), "A lease.");
    settings.AddBytes("cache", &cache_bytes, 0, 1LL << 40, "Of the cache.");
    settings.AddTextList("allowed_roots", &roots, "Where to read.");
    settings.AddLabels("labels", &labels, "For placement.");
  }
};

TEST(Settings, EveryKind_IsRead) {
  Fixture fixture;
  const absl::Status status = fixture.settings.Read(
      "listen: 0.0.0.0:1\nlog_level: debug\nmax_jobs: 7\npart: 1e-1\ninsecure: true\n"
      "lease_ms: 2500\ncache: 2GiB\nallowed_roots: [/a, /b]\nlabels: {zone: x}\n",
      "f");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(fixture.listen, "0.0.0.0:1");
  EXPECT_EQ(fixture.level, "debug");
  EXPECT_EQ(fixture.jobs, 7);
  EXPECT_DOUBLE_EQ(fixture.part, 0.1);
  EXPECT_TRUE(fixture.insecure);
  EXPECT_EQ(fixture.lease, absl::Milliseconds(2500));
  EXPECT_EQ(fixture.cache_bytes, 2LL << 30);
  EXPECT_THAT(fixture.roots, ElementsAre("/a", "/b"));
  EXPECT_EQ(fixture.labels["zone"], "x");
}

TEST(Settings, AbsentKeysAndEmptyFile_KeepDefaults) {
  Fixture fixture;
  EXPECT_TRUE(fixture.settings.Read("", "f").ok());
  EXPECT_TRUE(fixture.settings.Read("part: 0.25", "f").ok());
  EXPECT_EQ(fixture.jobs, 10);
}

TEST(Settings, SeveralFaults_AllComeAtOnceWithLinesAndRemedies) {
  Fixture fixture;
  const absl::Status status = fixture.settings.Read(
      "max_job: 3\nlease_ms: 5\nlog_level: loud\nlisten: a\nlisten: b\ninsecure: \"true\"\n",
      "c.yaml");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string text(status.message());
  EXPECT_THAT(text, HasSubstr("c.yaml"));
  EXPECT_THAT(text, HasSubstr("line 1: \"max_job\" is not a setting; did you mean max_jobs?"));
  EXPECT_THAT(text, HasSubstr("line 2: lease_ms: \"5\" is not right; give a whole number from 1000 "
                              "to 60000 (milliseconds)"));
  EXPECT_THAT(text, HasSubstr("line 3: log_level"));
  EXPECT_THAT(text, HasSubstr("line 5: listen is given again"));
  EXPECT_THAT(text, HasSubstr("line 6: insecure"));
}

TEST(Settings, NotAMap_IsRefused) {
  Fixture fixture;
  EXPECT_FALSE(fixture.settings.Read("- a\n- b\n", "f").ok());
  EXPECT_FALSE(fixture.settings.Read("a: [", "f").ok());
}

TEST(Settings, FileMissing_NamesIt) {
  Fixture fixture;
  EXPECT_THAT(std::string(fixture.settings.ReadFrom("/nowhere/c.yaml").message()),
              HasSubstr("/nowhere/c.yaml"));
}

TEST(Settings, Document_ReadBack_ChangesNothing) {
  Fixture fixture;
  fixture.jobs = 42;
  fixture.roots = {"/models"};
  const std::string document = fixture.settings.Document();
  Fixture other;
  ASSERT_TRUE(other.settings.Read(document, "f").ok()) << document;
  EXPECT_EQ(other.settings.Document(), document);
  EXPECT_EQ(other.jobs, 42);
}

}  // namespace
}  // namespace offshoot
