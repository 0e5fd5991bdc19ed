// Ranks that are threads, each with a directory of its own, and a courier between them.
#include "trainer/parallel/file_exchange.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <thread>
#include <vector>

#include "trainer/parallel/courier.h"
#include "trainer/testing.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

using Work = std::function<void(Collective&)>;

void RunThreads(int ranks, const std::function<std::unique_ptr<Collective>(int)>& make,
                const Work& work) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      const std::unique_ptr<Collective> collective = make(rank);
      work(*collective);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class FileExchangeTest : public testing::Test {
 protected:
  std::unique_ptr<Collective> Make(int rank, int ranks) {
    return MakeFileExchange({.rank = rank, .world_size = ranks},
                            directory_.File("rank" + std::to_string(rank)), courier_.LineOf(rank));
  }
  std::vector<std::string> FilesOf(int rank) {
    std::vector<std::string> names;
    for (const auto& entry :
         fs::directory_iterator(directory_.File("rank" + std::to_string(rank)))) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  TemporaryDirectory directory_;
  Courier courier_;
};

// More than one piece, and one that is not full.
constexpr std::int64_t kNumbers = 700'001;

TEST_F(FileExchangeTest, Sum_HasTheSameBitsOnAllRanks_AndIsGloosUpToTheOrder) {
  constexpr int kRanks = 3;
  std::vector<at::Tensor> parts;
  for (int rank = 0; rank < kRanks; ++rank) {
    parts.push_back(at::rand({kNumbers}, at::TensorOptions(at::kFloat)).sub(0.5));
  }
  std::vector<at::Tensor> carried(kRanks);
  RunThreads(
      kRanks, [this](int rank) { return Make(rank, kRanks); },
      [&](Collective& collective) {
        const auto rank = static_cast<std::size_t>(collective.rank());
        carried[rank] = parts[rank].clone();
        collective.AllReduceSum(carried[rank]);
      });
  std::vector<at::Tensor> met(kRanks);
  std::promise<std::int64_t> port;
  const std::shared_future<std::int64_t> known = port.get_future().share();
  RunThreads(
      kRanks,
      [&](int rank) {
        RankEnvironment environment = {.rank = rank, .world_size = kRanks};
        if (rank > 0) environment.master_port = known.get();
        return MakeCollective(environment, "cpu",
                              [&port](std::int64_t listening) { port.set_value(listening); });
      },
      [&](Collective& collective) {
        const auto rank = static_cast<std::size_t>(collective.rank());
        met[rank] = parts[rank].clone();
        collective.AllReduceSum(met[rank]);
      });
  for (int rank = 1; rank < kRanks; ++rank) {
    EXPECT_TRUE(carried[static_cast<std::size_t>(rank)].equal(carried[0]));
  }
  EXPECT_TRUE(carried[0].equal(parts[0].add(parts[1]).add(parts[2]))) << "in the ranks' order";
  EXPECT_TRUE(at::allclose(carried[0], met[0], 1e-6, 1e-6));
  EXPECT_FALSE(carried[0].equal(parts[0]));
}

TEST_F(FileExchangeTest, ManyRounds_OfSeveralSorts_LeaveTheLastRoundsFilesOnly) {
  constexpr int kRanks = 2;
  std::vector<double> seen(kRanks);
  RunThreads(
      kRanks, [this](int rank) { return Make(rank, kRanks); },
      [&](Collective& collective) {
        const auto rank = static_cast<double>(collective.rank());
        for (int round = 0; round < 20; ++round) {
          at::Tensor table = at::full({2, 3}, rank + 1 + round, at::TensorOptions(at::kDouble));
          collective.AllReduceSum(table);
          EXPECT_TRUE(table.equal(at::full({2, 3}, 3.0 + 2 * round, table.options())));
          at::Tensor word = at::full({4}, rank + 7, at::TensorOptions(at::kFloat));
          collective.Broadcast(word);
          EXPECT_TRUE(word.equal(at::full({4}, 7, word.options()))) << "rank 0's";
          collective.Barrier();
        }
        seen[static_cast<std::size_t>(collective.rank())] = 1;
      });
  EXPECT_THAT(seen, ::testing::Each(1.0));
  EXPECT_THAT(FilesOf(0), ::testing::ElementsAre("rank-0.round-60"));
  EXPECT_THAT(FilesOf(1), ::testing::ElementsAre("rank-1.round-60"));
}

// Jobs alike say the same zeros in the same round; the coordinator keeps and removes by digest.
TEST_F(FileExchangeTest, SameNumbersInTheSameRound_AreNotTheSameFile) {
  std::vector<std::string> files;
  for (const char* job : {"one", "other"}) {
    Courier courier;
    MakeFileExchange({.rank = 0, .world_size = 1}, directory_.File(job), courier.LineOf(0))
        ->Barrier();
    std::ifstream file(directory_.File(job) + "/rank-0.round-1", std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    EXPECT_FALSE(files.back().empty());
  }
  EXPECT_NE(files[0], files[1]);
}

TEST_F(FileExchangeTest, NothingMoreComes_EndsTheWaitingRank) {
  const std::unique_ptr<Collective> first = Make(0, 2);
  std::thread worker([this] { courier_.End(); });
  EXPECT_THAT(MessageOf(Reason::kRankLost, [&] { first->Barrier(); }), HasSubstr("rank 0 of 2"));
  worker.join();
}

TEST_F(FileExchangeTest, PartOfAnotherSize_IsRefused) {
  std::vector<std::string> said(2);
  RunThreads(
      2, [this](int rank) { return Make(rank, 2); },
      [&](Collective& collective) {
        at::Tensor tensor = at::full({3 + collective.rank()}, 1, at::TensorOptions(at::kFloat));
        said[static_cast<std::size_t>(collective.rank())] =
            MessageOf(Reason::kInternal, [&] { collective.AllReduceSum(tensor); });
      });
  EXPECT_THAT(said[0], HasSubstr("rank-1.round-1"));
  EXPECT_THAT(said[1], HasSubstr("rank-0.round-1"));
}

}  // namespace
}  // namespace offshoot::trainer
