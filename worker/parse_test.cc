// Devices, trainer events and the inventory: what comes in as text.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "worker/devices.h"
#include "worker/inventory.h"
#include "worker/trainer_event.h"

namespace offshoot::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

TEST(ParseDevicesTest, WithThreads_AreTakenAsTheyAre) {
  const auto devices = ParseDevices("cpu:0@1, cpu:1@3", {.cpu_cores = 8, .gpus = 0});
  ASSERT_TRUE(devices.ok()) << devices.status();
  EXPECT_THAT(*devices, ElementsAre(DeviceChoice{DeviceKind::kCpu, 0, 1},
                                    DeviceChoice{DeviceKind::kCpu, 1, 3}));
}

TEST(ParseDevicesTest, WithoutThreads_ShareWhatIsLeft) {
  const auto devices = ParseDevices("cpu:0@2,cpu:1,cpu:2", {.cpu_cores = 8, .gpus = 0});
  ASSERT_TRUE(devices.ok());
  EXPECT_EQ((*devices)[1].threads, 3);
  EXPECT_EQ((*devices)[2].threads, 3);
}

TEST(ParseDevicesTest, Empty_IsEveryGpuOrTheCpu) {
  EXPECT_THAT(*ParseDevices("", {.cpu_cores = 8, .gpus = 0}),
              ElementsAre(DeviceChoice{DeviceKind::kCpu, 0, 8}));
  EXPECT_THAT(
      *ParseDevices("", {.cpu_cores = 8, .gpus = 2}),
      ElementsAre(DeviceChoice{DeviceKind::kCuda, 0, 4}, DeviceChoice{DeviceKind::kCuda, 1, 4}));
}

TEST(ParseDevicesTest, WrongWords_AreNamed) {
  for (const char* text : {"cpu", "cpu:", "cpu:x", "cpu:-1", "cpu:0@", "cpu:0@0", "cpu:0@1@2",
                           "gpu:0", "cuda:0", "cpu:0,cpu:0", "cpu:0,,cpu:1", "cpu:0@99999"}) {
    const auto devices = ParseDevices(text, {.cpu_cores = 8, .gpus = 0});
    ASSERT_FALSE(devices.ok()) << text;
    EXPECT_THAT(std::string(devices.status().message()), HasSubstr("--devices")) << text;
  }
}

TEST(InventoryTest, ThisMachine_HasCoresAndMemory) {
  const CpuFacts cpu = ReadCpuFacts();
  EXPECT_GE(cpu.cores, 1);
  EXPECT_FALSE(cpu.model.empty());
  EXPECT_GT(UsableMemoryBytes(), 64 << 20);
  EXPECT_GT(FreeDiskBytes("/"), 0);
}

TEST(InventoryTest, Affinity_LimitsTheCores) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &before)) {
      CPU_SET(core, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(ReadCpuFacts().cores, 1);
  sched_setaffinity(0, sizeof(before), &before);
}

TEST(InventoryTest, CpuDevices_ShareTheMemory) {
  const v1::Inventory inventory = MakeInventory(
      CpuFacts{}, 1000, {GpuFacts{1, "H100", 80, "550"}},
      {{DeviceKind::kCpu, 0, 1}, {DeviceKind::kCpu, 1, 1}, {DeviceKind::kCuda, 1, 4}});
  ASSERT_EQ(inventory.devices_size(), 3);
  EXPECT_EQ(inventory.devices(0).memory_bytes(), 500);
  EXPECT_EQ(inventory.devices(2).model(), "H100");
  EXPECT_EQ(inventory.devices(2).memory_bytes(), 80);
}

TEST(ParseTrainerEventTest, Metrics_WithNan) {
  const auto event = ParseTrainerEvent(
      R"({"event": "metrics", "time": 1.5, "step": 7, "epoch": 0.5, "train_loss": "nan",
          "grad_norm": "inf", "learning_rate": 0.001, "tokens": 99, "step_seconds": 0.1,
          "tokens_per_second": 990})");
  ASSERT_TRUE(event.ok()) << event.status();
  const auto& metrics = std::get<TrainerMetrics>(*event);
  EXPECT_EQ(metrics.step, 7);
  EXPECT_TRUE(std::isnan(metrics.train_loss));
  EXPECT_TRUE(std::isinf(metrics.grad_norm));
}

TEST(ParseTrainerEventTest, OptionalFields_MayBeNull) {
  const auto result = ParseTrainerEvent(
      R"({"event": "result", "path": "/w/result", "first_step": 1, "last_step": 9,
          "base_eval_loss": null, "eval_loss": 2.5, "peak_memory_bytes": 5})");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(std::get<TrainerResult>(*result).base_eval_loss.has_value());
  EXPECT_EQ(std::get<TrainerResult>(*result).eval_loss, 2.5);
  const auto stopped = ParseTrainerEvent(R"({"event": "stopped", "step": 3, "path": null})");
  ASSERT_TRUE(stopped.ok());
  EXPECT_EQ(std::get<TrainerStopped>(*stopped).path, "");
}

TEST(ParseTrainerEventTest, WhatIsNoEvent_IsRefused) {
  const std::string deep = std::string(100'000, '[');
  for (const std::string& line :
       {std::string(""), std::string("{}"), std::string("[]"), std::string("null"),
        std::string(R"({"event": 5})"), std::string(R"({"event": "unknown"})"),
        std::string(R"({"event": "started", "first_step": 1})"),
        std::string(R"({"event": "started", "first_step": 1.5, "total_steps": 2})"),
        std::string(
            R"({"event": "started", "first_step": 18446744073709551615, "total_steps": 2})"),
        std::string(R"({"event": "checkpoint", "step": 1, "path": 7})"),
        std::string("{\"event\": \"stage\", \"stage\": \"\xff\"}"), deep,
        R"({"event": "stage", "stage": ")" + std::string(100, 'x') + "\"}"}) {
    EXPECT_FALSE(ParseTrainerEvent(line).ok()) << line.substr(0, 80);
  }
}

TEST(ParseTrainerEventTest, RandomDamage_NeverCrashes) {
  const std::string good =
      R"({"event": "metrics", "time": 1.5, "step": 7, "epoch": 0.5, "train_loss": 1, "x": [[{}]]})";
  const unsigned int seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 20'000; ++round) {
    std::string line = good;
    for (int change = 0; change < 3; ++change) {
      line[random() % line.size()] = static_cast<char>(random());
    }
    ParseTrainerEvent(line).IgnoreError();
  }
}

TEST(LineSplitterTest, Lines_AreCutWhereverTheBytesArriveFrom) {
  const std::string text = "one\n\ntwo\nthree";
  for (std::size_t piece = 1; piece <= text.size(); ++piece) {
    LineSplitter splitter(100);
    std::vector<std::string> lines;
    const auto handler = [&lines](absl::string_view line, bool whole) {
      EXPECT_TRUE(whole);
      lines.emplace_back(line);
    };
    for (std::size_t at = 0; at < text.size(); at += piece) {
      splitter.Add(absl::string_view(text).substr(at, piece), handler);
    }
    splitter.Finish(handler);
    EXPECT_THAT(lines, ElementsAre("one", "", "two", "three"));
  }
}

TEST(LineSplitterTest, OverlongLine_ComesInBoundedPiecesAndTheNextIsWhole) {
  LineSplitter splitter(4);
  std::vector<std::pair<std::string, bool>> lines;
  splitter.Add("123456789\nab\n", [&lines](absl::string_view line, bool whole) {
    lines.emplace_back(std::string(line), whole);
  });
  EXPECT_THAT(lines, ElementsAre(Pair("1234", false), Pair("5678", false), Pair("9", false),
                                 Pair("ab", true)));
}

}  // namespace
}  // namespace offshoot::worker
