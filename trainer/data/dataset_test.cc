#include "trainer/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trainer/data/data_testing.h"
#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string ChatLine(const std::string& question, const std::string& answer) {
  return nlohmann::json{{"messages",
                         {{{"role", "user"}, {"content", question}},
                          {{"role", "assistant"}, {"content", answer}}}}}
             .dump() +
         "\n";
}

class LoadDataTest : public testing::Test {
 protected:
  DataOptions OptionsOf(const std::string& text, DataType type = DataType::kChat) {
    DataOptions options;
    options.sources.push_back({directory_.Write("data.jsonl", text), type, ""});
    options.vocab_size = tokenizer_->vocab_size();
    options.sequence_len = 128;
    return options;
  }
  DataSplit Load(const DataOptions& options) { return LoadData(options, tokenizer_.get(), "t"); }

  std::string Complaint(const DataOptions& options, Reason reason = Reason::kBadData) {
    try {
      Load(options);
    } catch (const Error& error) {
      EXPECT_EQ(error.reason, reason) << error.what();
      return error.what();
    }
    return "no complaint";
  }

  const TemporaryDirectory directory_;
  const std::unique_ptr<Tokenizer> tokenizer_ = TokenizerWithTemplate("chatml.jinja");
};

std::vector<std::vector<std::int32_t>> AllRows(const Dataset& dataset) {
  std::vector<std::vector<std::int32_t>> rows;
  for (std::int64_t row = 0; row < dataset.size(); ++row) {
    rows.emplace_back(dataset.ids(row).begin(), dataset.ids(row).end());
    rows.emplace_back(dataset.labels(row).begin(), dataset.labels(row).end());
  }
  return rows;
}

std::string ManyChats(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    text += ChatLine("Question " + std::to_string(i) + "?",
                     std::string(i % 7 + 1, 'a' + i % 26) + " number " + std::to_string(i));
  }
  return text;
}

TEST_F(LoadDataTest, Chat_RowsAndCounts) {
  const DataSplit split = Load(OptionsOf(ChatLine("Hi", "Hello.") + "\n" + ChatLine("Yo", "Hey.")));
  ASSERT_EQ(split.train->size(), 2);
  EXPECT_EQ(split.held_out->size(), 0);
  EXPECT_EQ(split.counts.lines, 2);
  EXPECT_EQ(split.counts.dropped_rows, 0);
  EXPECT_THAT(split.warnings, IsEmpty());
  EXPECT_EQ(split.train->line(1), 2);
  EXPECT_THAT(split.train->Describe(1), HasSubstr("data.jsonl line 3"));
  EXPECT_EQ(split.counts.trained_tokens,
            split.train->trained_tokens(0) + split.train->trained_tokens(1));
  EXPECT_EQ(split.counts.tokens,
            static_cast<std::int64_t>(split.train->ids(0).size() + split.train->ids(1).size()));
}

TEST_F(LoadDataTest, Threads_DoNotChangeTheRows) {
  DataOptions options = OptionsOf(ManyChats(500));
  const DataSplit one = Load(options);
  options.threads = 4;
  const DataSplit four = Load(options);
  EXPECT_EQ(AllRows(*one.train), AllRows(*four.train));
  EXPECT_EQ(one.digest, four.digest);
}

TEST_F(LoadDataTest, HeldOut_SharesNoAnswerWithTheRest) {
  std::string text;
  for (int i = 0; i < 60; ++i) {
    text += ChatLine("Question " + std::to_string(i), "Answer " + std::to_string(i % 20));
  }
  DataOptions options = OptionsOf(text);
  options.val_set_size = 0.2;
  const DataSplit split = Load(options);
  EXPECT_EQ(split.held_out->size(), 12);
  EXPECT_EQ(split.train->size(), 48);
  const auto answer = [](const Dataset& dataset, std::int64_t row) {
    std::vector<std::int32_t> trained;
    for (const std::int32_t label : dataset.labels(row)) {
      if (label != kIgnoredLabel) trained.push_back(label);
    }
    return trained;
  };
  for (std::int64_t a = 0; a < split.held_out->size(); ++a) {
    for (std::int64_t b = 0; b < split.train->size(); ++b) {
      EXPECT_NE(answer(*split.held_out, a), answer(*split.train, b));
    }
  }
}

TEST_F(LoadDataTest, TooLong_KeepsTheStartAndIsCounted) {
  DataOptions options = OptionsOf(ChatLine("Hi", "Hello.") + ChatLine("Hi", std::string(900, 'x')));
  options.sequence_len = 64;
  const DataSplit split = Load(options);
  EXPECT_EQ(split.counts.truncated_rows, 1);
  EXPECT_EQ(split.train->ids(1).size(), 64u);
  EXPECT_GT(split.counts.longest_row, 64);
  EXPECT_THAT(split.warnings, ElementsAre(AllOf(HasSubstr("1 of 2 rows"), HasSubstr("64"))));
}

TEST_F(LoadDataTest, NothingTrainedAfterTheCut_IsDroppedAndCounted) {
  DataOptions options = OptionsOf(ChatLine(std::string(900, 'q'), "A.") + ChatLine("Hi", "Hello."));
  options.sequence_len = 100;
  const DataSplit split = Load(options);
  EXPECT_EQ(split.train->size(), 1);
  EXPECT_EQ(split.counts.dropped_rows, 1);
  EXPECT_EQ(split.train->line(0), 1);
}

TEST_F(LoadDataTest, NothingTrainedAtAll_IsRefusedWithTheCounts) {
  DataOptions options = OptionsOf(ChatLine("Hi", "Hello.") + ChatLine("Ho", "Hello."));
  options.sequence_len = 4;
  EXPECT_THAT(Complaint(options), AllOf(HasSubstr("data.jsonl is left to train on: of 2 rows 2"),
                                        HasSubstr("raise sequence_len")));
  EXPECT_THAT(Complaint(OptionsOf(R"({"input_ids": [1, 2], "labels": [-100, -100]})",
                                  DataType::kPretokenized)),
              HasSubstr("data.jsonl is left to train on"));
}

TEST_F(LoadDataTest, BrokenLines_AreNamed) {
  std::string text;
  for (int i = 0; i < 6; ++i) text += ChatLine("Hi", "Hello.");
  EXPECT_THAT(Complaint(OptionsOf(text + "{\"messages\": [}\n")),
              AllOf(HasSubstr("data.jsonl line 7: "), HasSubstr("not valid JSON")));
  EXPECT_THAT(Complaint(OptionsOf(text + "{\"messages\": \"\xFF\"}\n")),
              AllOf(HasSubstr("data.jsonl line 7: "), HasSubstr("UTF-8")));
  EXPECT_THAT(Complaint(OptionsOf(text + "{\"text\": \"x\"}\n")),
              AllOf(HasSubstr("data.jsonl line 7: "), HasSubstr("\"messages\"")));
  EXPECT_THAT(Complaint(OptionsOf("")), HasSubstr("data.jsonl is empty"));
  EXPECT_THAT(Complaint(OptionsOf("\n\n")), HasSubstr("data.jsonl is empty"));
}

TEST_F(LoadDataTest, SecondOfSeveralFaults_FirstIsReportedWhateverTheThreads) {
  DataOptions options = OptionsOf(ManyChats(50) + "broken\n" + ManyChats(50) + "broken too\n");
  options.threads = 4;
  EXPECT_THAT(Complaint(options), HasSubstr("data.jsonl line 51: "));
}

TEST_F(LoadDataTest, SecondFile_LinesCountOn) {
  DataOptions options = OptionsOf(ManyChats(3));
  options.sources.push_back(
      {directory_.Write("more.jsonl", "{\"text\": \"some words\"}\n"), DataType::kText, ""});
  const DataSplit split = Load(options);
  ASSERT_EQ(split.train->size(), 4);
  EXPECT_EQ(split.train->line(3), 3);
  EXPECT_THAT(split.train->Describe(3), HasSubstr("more.jsonl line 1"));
}

TEST_F(LoadDataTest, Cache_SecondStartMapsTheSameRows) {
  DataOptions options = OptionsOf(ManyChats(40));
  options.cache_directory = (directory_.path() / "cache").string();
  options.val_set_size = 5;
  const DataSplit first = Load(options);
  const DataSplit second = Load(options);
  EXPECT_FALSE(first.from_cache);
  EXPECT_TRUE(second.from_cache);
  EXPECT_EQ(AllRows(*first.train), AllRows(*second.train));
  EXPECT_EQ(AllRows(*first.held_out), AllRows(*second.held_out));
  EXPECT_EQ(first.counts, second.counts);
  EXPECT_EQ(first.digest, second.digest);
}

TEST_F(LoadDataTest, Cache_WhatMattersMakesItAnew) {
  DataOptions options = OptionsOf(ManyChats(40));
  options.cache_directory = (directory_.path() / "cache").string();
  Load(options);
  DataOptions other = options;
  other.seed = 5;
  other.val_set_size = 3;
  EXPECT_TRUE(Load(other).from_cache) << "the split is not part of the rows";
  other = options;
  other.sequence_len = 64;
  EXPECT_FALSE(Load(other).from_cache);
  EXPECT_FALSE(LoadData(options, tokenizer_.get(), "another tokenizer").from_cache);
  directory_.Write("data.jsonl", ManyChats(41));
  EXPECT_FALSE(Load(options).from_cache);
}

TEST_F(LoadDataTest, Cache_BrokenFileIsMadeAnew) {
  DataOptions options = OptionsOf(ManyChats(40));
  options.cache_directory = (directory_.path() / "cache").string();
  const auto rows = AllRows(*Load(options).train);
  const auto file = std::filesystem::directory_iterator(options.cache_directory)->path();
  std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
  const DataSplit second = Load(options);
  EXPECT_FALSE(second.from_cache);
  EXPECT_EQ(AllRows(*second.train), rows);
}

TEST_F(LoadDataTest, SpecOutOfRange_IsABadSpec) {
  DataOptions options = OptionsOf(ManyChats(4));
  options.sequence_len = 1;
  EXPECT_THAT(Complaint(options, Reason::kBadSpec), HasSubstr("sequence_len is 1"));
  options.sequence_len = 64;
  options.val_set_size = 4;
  EXPECT_THAT(Complaint(options, Reason::kBadSpec), HasSubstr("leaves nothing to train on"));
  options.sources.clear();
  EXPECT_THAT(Complaint(options, Reason::kBadSpec), HasSubstr("datasets is empty"));
}

TEST(DataOptions, FromSpec_ReadsItsKeys) {
  const DataOptions options = DataOptionsFromSpec(
      nlohmann::json::parse(R"({"datasets": [{"path": "/a", "type": "text", "digest": "sha256:1"}],
                                "sequence_len": 9, "val_set_size": 0.5, "seed": 4, "threads": 2})"),
      100, "/c");
  EXPECT_EQ(options.sources.at(0).type, DataType::kText);
  EXPECT_EQ(options.sources.at(0).digest, "sha256:1");
  EXPECT_EQ(options.sequence_len, 9);
  EXPECT_EQ(options.val_set_size, 0.5);
  EXPECT_EQ(options.seed, 4u);
  EXPECT_EQ(options.threads, 2);
  EXPECT_THROW(DataOptionsFromSpec({{"datasets", {{{"path", "/a"}, {"type", "csv"}}}}}, 1, ""),
               Error);
  EXPECT_THROW(DataOptionsFromSpec({{"datasets", "x"}}, 1, ""), Error);
}

// The committed sample, with the real tokenizer where it is at hand.
TEST(WordNetSample, DemoTokenizer_EveryRowIsTrainedOnItsGloss) {
  const char* path = std::getenv("OFFSHOOT_DEMO_MODEL");
  if (path == nullptr) GTEST_SKIP() << "OFFSHOOT_DEMO_MODEL does not name the demo model's GGUF";
  const auto tokenizer = Tokenizer::Open(path);
  DataOptions options;
  options.sources.push_back({"configs/data/wordnet_nouns.jsonl", DataType::kChat, ""});
  options.vocab_size = tokenizer->vocab_size();
  options.sequence_len = 256;
  options.val_set_size = 100;
  options.threads = 2;
  const DataSplit split = LoadData(options, tokenizer.get(), "demo");
  EXPECT_EQ(split.train->size(), 1400);
  EXPECT_EQ(split.held_out->size(), 100);
  EXPECT_THAT(split.warnings, IsEmpty());
  std::vector<std::int64_t> trained;
  for (const std::int32_t label : split.train->labels(0)) {
    if (label != kIgnoredLabel) trained.push_back(label);
  }
  EXPECT_EQ(tokenizer->Decode(trained, false).substr(tokenizer->Decode(trained, false).size() - 10),
            "<|im_end|>");
}

}  // namespace
}  // namespace offshoot::trainer
