#include "trainer/events.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <string>
#include <vector>

#include "trainer/testing.h"

namespace offshoot::trainer {
namespace {

using ::testing::HasSubstr;

struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    reader = ends[0];
    writer = ends[1];
  }
  ~Pipe() {
    CloseReader();
    CloseWriter();
  }
  void CloseReader() {
    if (reader >= 0) close(reader);
    reader = -1;
  }
  void CloseWriter() {
    if (writer >= 0) close(writer);
    writer = -1;
  }
  int reader = -1;
  int writer = -1;
};

// Everything until the writing end is closed.
std::vector<nlohmann::json> ReadEvents(int descriptor) {
  std::string text;
  char buffer[65536];
  ssize_t count = 0;
  while ((count = read(descriptor, buffer, sizeof(buffer))) > 0) {
    text.append(buffer, static_cast<std::size_t>(count));
  }
  std::vector<nlohmann::json> events;
  std::size_t begin = 0;
  for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    events.push_back(nlohmann::json::parse(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  EXPECT_EQ(begin, text.size()) << "the last line is not whole";
  return events;
}

TEST(EncodeNumber, NotFinite_IsText) {
  EXPECT_EQ(EncodeNumber(1.5), 1.5);
  EXPECT_EQ(EncodeNumber(std::nan("")), "nan");
  EXPECT_EQ(EncodeNumber(INFINITY), "inf");
  EXPECT_EQ(EncodeNumber(-INFINITY), "-inf");
}

TEST(EventWriter, Events_ArriveInOrderWithNameAndTime) {
  Pipe pipe;
  {
    EventWriter writer(pipe.writer);
    writer.Emit("stage", {{"stage", "loading"}});
    writer.EmitMetrics({{"step", 1}});
    writer.Emit("failed", {{"message", std::string("cut \xC3")}});  // half a character
    EXPECT_TRUE(writer.Flush(5000));
  }
  pipe.CloseWriter();
  const std::vector<nlohmann::json> events = ReadEvents(pipe.reader);
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0].at("event"), "stage");
  EXPECT_EQ(events[1].at("event"), "metrics");
  EXPECT_EQ(events[2].at("event"), "failed");
  EXPECT_GT(events[0].at("time").get<double>(), 1e9);
}

TEST(EventWriter, SlowReader_DropsMetricsButNoStateEvent) {
  Pipe pipe;
  constexpr int kMetrics = 5000;
  {
    EventWriter writer(pipe.writer);
    for (int i = 0; i < kMetrics; ++i) {  // nobody reads: far beyond queue and pipe
      writer.EmitMetrics({{"step", i}, {"padding", std::string(200, 'x')}});
    }
    EXPECT_GT(writer.dropped(), 0);
    std::vector<nlohmann::json> events;
    std::thread reader([&] { events = ReadEvents(pipe.reader); });
    for (int i = 0; i < 2000; ++i) {
      writer.Emit("checkpoint", {{"step", i}});
    }
    EXPECT_TRUE(writer.Flush(20000));
    pipe.CloseWriter();
    reader.join();
    int checkpoints = 0;
    for (const nlohmann::json& event : events) {
      if (event.at("event") == "checkpoint") {
        EXPECT_EQ(event.at("step"), checkpoints);
        ++checkpoints;
      }
    }
    EXPECT_EQ(checkpoints, 2000);
    EXPECT_EQ(static_cast<std::int64_t>(events.size()), kMetrics - writer.dropped() + 2000);
  }
}

TEST(EventWriter, ReaderGone_NeverBlocks) {
  InstallProcessGuards(-1, -1);  // SIGPIPE ignored
  Pipe pipe;
  pipe.CloseReader();
  EventWriter writer(pipe.writer);
  for (int i = 0; i < 3000; ++i) {
    writer.Emit("checkpoint", {{"step", i}});
  }
  EXPECT_FALSE(writer.Flush(5000));
}

TEST(EventWriter, StuckReader_IsAbandonedAtTheEnd) {
  Pipe pipe;
  EventWriter writer(pipe.writer);
  writer.Emit("sample", {{"text", std::string(1 << 20, 'x')}});
  EXPECT_FALSE(writer.Flush(50));
}

void Send(int descriptor, const std::string& text) {
  ASSERT_EQ(write(descriptor, text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

TEST(RunControl, Commands_AreTaken) {
  Pipe pipe;
  RunControl control(pipe.reader);
  EXPECT_EQ(control.stop_request(), StopRequest::kNone);
  Send(pipe.writer, "{\"command\": \"checkpoint\"}\nnonsense\n{\"command\": \"dance\"}\n");
  Send(pipe.writer, "{\"command\": \"checkpoint_stored\", \"step\"");
  Send(pipe.writer, ": 20}\n");
  EXPECT_TRUE(control.WaitUntilStored(20));
  EXPECT_TRUE(control.TakeCheckpointRequest());
  EXPECT_FALSE(control.TakeCheckpointRequest());
  EXPECT_TRUE(control.WaitUntilStored(10));
  Send(pipe.writer, "{\"command\": \"stop\", \"checkpoint\": false}\n");
  EXPECT_FALSE(control.WaitUntilStored(40));
  EXPECT_EQ(control.stop_request(), StopRequest::kStopWithoutCheckpoint);
}

TEST(RunControl, EndOfLine_AsksForAStopWithCheckpoint) {
  Pipe pipe;
  RunControl control(pipe.reader);
  pipe.CloseWriter();
  EXPECT_FALSE(control.WaitUntilStored(1));
  EXPECT_EQ(control.stop_request(), StopRequest::kStop);
}

TEST(RunControl, Contributions_AreTakenWheneverTheyCome) {
  Pipe pipe;
  RunControl control(pipe.reader);
  Send(pipe.writer, "{\"command\": \"contribution\", \"round\": 1}\n");
  Send(pipe.writer,
       "{\"command\": \"contribution\", \"round\": 2, \"rank\": 1, \"path\": \"/b\"}\n"
       "{\"command\": \"contribution\", \"round\": 1, \"rank\": 0, \"path\": \"/a\"}\n");
  EXPECT_EQ(control.WaitForContribution(1, 0), "/a");
  EXPECT_EQ(control.WaitForContribution(2, 1), "/b");
  std::thread sender([&pipe] {
    Send(pipe.writer,
         "{\"command\": \"contribution\", \"round\": 2, \"rank\": 0, \"path\": \"/c\"}\n");
  });
  EXPECT_EQ(control.WaitForContribution(2, 0), "/c");
  sender.join();
  pipe.CloseWriter();
  EXPECT_EQ(control.WaitForContribution(3, 0), "") << "the worker is gone";
}

TEST(RunControl, EndlessLine_IsBounded) {
  Pipe pipe;
  RunControl control(pipe.reader);
  for (int i = 0; i < 20; ++i) {
    Send(pipe.writer, std::string(4096, 'x'));
  }
  EXPECT_FALSE(control.WaitUntilStored(1));
  EXPECT_EQ(control.stop_request(), StopRequest::kStop);
}

TEST(RunControl, WithoutALine_NeedsNoConfirmation) {
  RunControl control(-1);
  EXPECT_TRUE(control.WaitUntilStored(100));
  EXPECT_EQ(control.stop_request(), StopRequest::kNone);
}

TEST(InstallProcessGuards, ClosedDescriptor_IsNamed) {
  EXPECT_THAT(MessageOf(Reason::kBadSpec, [] { InstallProcessGuards(913, -1); }),
              HasSubstr("descriptor 913 is not open"));
}

}  // namespace
}  // namespace offshoot::trainer
