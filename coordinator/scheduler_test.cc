#include "coordinator/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/testing/cluster_snapshots.h"

namespace offshoot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Schedule_NoWorkers, JobWaits_ForAWorker) {
  ClusterSnapshot snapshot;
  snapshot.waiting = {MakeJob("job-a", 1)};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  ASSERT_EQ(plan.waiting.size(), 1u);
  EXPECT_FALSE(plan.waiting[0].infeasible);
  EXPECT_THAT(*plan.waiting[0].sentence, HasSubstr("waiting for a worker"));
}

TEST(Schedule_OneDevice, OldestOfHighestPriority_GoesFirst) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1)};
  snapshot.waiting = {MakeJob("job-a", 50), MakeJob("job-b", 100), MakeJob("job-c", 1, {}, 5),
                      MakeJob("job-d", 2, {}, 5)};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, ElementsAre(Start{JobId("job-d"), {{WorkerId("wrk-1"), {"cpu:0"}}}}));
  ASSERT_EQ(plan.waiting.size(), 3u);
  EXPECT_THAT(*plan.waiting[0].sentence, HasSubstr("waiting for 1 device to become free"));
  EXPECT_EQ(plan.waiting[0].job_id, JobId("job-c"));
  EXPECT_EQ(plan.waiting[0].place, 1);
  EXPECT_EQ(plan.waiting[1].job_id, JobId("job-b"));
  EXPECT_EQ(plan.waiting[2].place, 3);
}

TEST(Schedule_Ties, EqualAge_IsBrokenById) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1)};
  snapshot.waiting = {MakeJob("job-b", 5), MakeJob("job-a", 5)};
  EXPECT_EQ(Schedule(snapshot, kNow).starts.at(0).job_id, JobId("job-a"));
}

TEST(Schedule_Gang, NotEnoughFreeDevices_IsPlacedNotAtAll) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 4)};
  Occupy(snapshot, "wrk-1", {1});
  snapshot.waiting = {MakeJob("job-a", 5, Ranks(4))};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  EXPECT_FALSE(plan.waiting.at(0).infeasible);
  EXPECT_THAT(*plan.waiting.at(0).sentence, HasSubstr("4 devices"));
}

TEST(Schedule_Avoid, AnotherWorkerIsBusy_TheJobWaitsForIt) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1), MakeWorker("wrk-2", 1)};
  Occupy(snapshot, "wrk-2", {0});
  snapshot.waiting = {MakeJob("job-a", 5)};
  snapshot.waiting[0].avoid = {WorkerId("wrk-1")};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  EXPECT_THAT(*plan.waiting.at(0).sentence,
              HasSubstr("other workers than where a rank of it hung"));
}

TEST(Schedule_Avoid, NoOtherWorkerWillEverDo_TheAvoidedOneDoes) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1)};
  snapshot.waiting = {MakeJob("job-a", 5), MakeJob("job-b", 4)};
  snapshot.waiting[0].avoid = {WorkerId("wrk-1")};
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{JobId("job-a"), {{WorkerId("wrk-1"), {"cpu:0"}}}}));
}

TEST(Schedule_Gang, EnoughDevices_IsPlacedWholeOnOneKind) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1, 2)};
  snapshot.waiting = {MakeJob("job-a", 5, Ranks(2))};
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{JobId("job-a"), {{WorkerId("wrk-1"), {"cuda:0", "cuda:1"}}}}));
}

TEST(Schedule_Gang, MoreThanAllWorkersHave_IsInfeasibleWithTheNumber) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 2), MakeWorker("wrk-2", 3)};
  snapshot.waiting = {MakeJob("job-a", 5, Ranks(6))};
  const Plan plan = Schedule(snapshot, kNow);
  ASSERT_EQ(plan.waiting.size(), 1u);
  EXPECT_TRUE(plan.waiting[0].infeasible);
  EXPECT_THAT(*plan.waiting[0].sentence, HasSubstr("the most that can work together is 5"));
}

TEST(Schedule_Gang, LargerThanAnyWorker_SpansAsFewAsCanBe) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 2), MakeWorker("wrk-2", 3), MakeWorker("wrk-3", 1),
                      MakeWorker("wrk-4", 2)};
  snapshot.waiting = {MakeJob("job-a", 5, Ranks(4))};
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{JobId("job-a"),
                                {{WorkerId("wrk-2"), {"cpu:0", "cpu:1", "cpu:2"}},
                                 {WorkerId("wrk-3"), {"cpu:0"}}}}));
}

TEST(Schedule_Gang, WorkersThatCannotBeReached_TakeNoPart) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 2, 0, {}, /*joins_gangs=*/false), MakeWorker("wrk-2", 2),
                      MakeWorker("wrk-3", 1)};
  snapshot.waiting = {MakeJob("job-a", 5, Ranks(3)), MakeJob("job-b", 4, Ranks(2)),
                      MakeJob("job-c", 3, Ranks(4))};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(
      plan.starts,
      ElementsAre(Start{JobId("job-a"),
                        {{WorkerId("wrk-2"), {"cpu:0", "cpu:1"}}, {WorkerId("wrk-3"), {"cpu:0"}}}},
                  Start{JobId("job-b"), {{WorkerId("wrk-1"), {"cpu:0", "cpu:1"}}}}));
  ASSERT_EQ(plan.waiting.size(), 1u);
  EXPECT_TRUE(plan.waiting[0].infeasible);
}

TEST(Schedule_Gang, RanksThatExchangeArtifacts_NeedNotBeReached) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 2, 0, {}, /*joins_gangs=*/false),
                      MakeWorker("wrk-2", 1, 0, {}, /*joins_gangs=*/false)};
  JobRequirements apart = Ranks(3);
  snapshot.waiting = {MakeJob("job-a", 5, apart)};
  ASSERT_EQ(Schedule(snapshot, kNow).waiting.size(), 1u);
  EXPECT_TRUE(Schedule(snapshot, kNow).waiting[0].infeasible);
  apart.exchange_artifacts = true;
  snapshot.waiting = {MakeJob("job-a", 5, apart)};
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{
                  JobId("job-a"),
                  {{WorkerId("wrk-1"), {"cpu:0", "cpu:1"}}, {WorkerId("wrk-2"), {"cpu:0"}}}}));
  apart.ranks = 2;
  apart.max_ranks = 3;
  snapshot.waiting = {MakeJob("job-a", 5, apart)};
  ASSERT_EQ(Schedule(snapshot, kNow).starts.size(), 1u);
  EXPECT_EQ(Schedule(snapshot, kNow).starts[0].parts.size(), 2u) << "it may be enlarged so, too";
}

TEST(Schedule_Gang, OneRackHasRoom_KeepsWithinIt) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 2, 0, {{"rack", "a"}}),
                      MakeWorker("wrk-2", 3, 0, {{"rack", "b"}}),
                      MakeWorker("wrk-3", 2, 0, {{"rack", "a"}})};
  snapshot.waiting = {MakeJob("job-a", 5, Ranks(4))};
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{JobId("job-a"),
                                {{WorkerId("wrk-1"), {"cpu:0", "cpu:1"}},
                                 {WorkerId("wrk-3"), {"cpu:0", "cpu:1"}}}}));
}

TEST(Schedule_Gang, FewerFreeThanWanted_StartsWithMinRanksOrMore) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 3), MakeWorker("wrk-2", 3)};
  Occupy(snapshot, "wrk-1", {0});
  JobRequirements elastic = Ranks(6);
  elastic.min_ranks = 2;
  snapshot.waiting = {MakeJob("job-a", 5, elastic)};
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{JobId("job-a"),
                                {{WorkerId("wrk-2"), {"cpu:0", "cpu:1", "cpu:2"}},
                                 {WorkerId("wrk-1"), {"cpu:1", "cpu:2"}}}}));
}

TEST(Schedule_Gang, NobodyElseWaits_TakesUpToMaxRanks) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 4)};
  JobRequirements elastic = Ranks(2);
  elastic.max_ranks = 3;
  snapshot.waiting = {MakeJob("job-a", 5, elastic)};
  EXPECT_THAT(
      Schedule(snapshot, kNow).starts,
      ElementsAre(Start{JobId("job-a"), {{WorkerId("wrk-1"), {"cpu:0", "cpu:1", "cpu:2"}}}}));
}

TEST(Schedule_Rank, SmallJob_TakesTheFullestWorkerThatFits) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 4), MakeWorker("wrk-2", 1), MakeWorker("wrk-3", 2)};
  snapshot.waiting = {MakeJob("job-a", 5)};
  EXPECT_EQ(Schedule(snapshot, kNow).starts.at(0).parts.at(0).worker_id, WorkerId("wrk-2"));
}

JobRequirements Needing(std::int64_t cpu_bytes, std::int64_t less) {
  JobRequirements requirements;
  requirements.memory.cpu = {cpu_bytes, "weights 1 GB", {{"gradient_checkpointing: true", less}}};
  requirements.memory.cuda = {100 * cpu_bytes, "", {}};
  return requirements;
}

TEST(Schedule_Filter, Memory_KeepsAJobOffDevicesThatAreTooSmall) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("a", 1)};
  snapshot.waiting = {MakeJob("fits", 2, Needing(5'000'000'000, 0)),
                      MakeJob("large", 1, Needing(20'000'000'000, 4'000'000'000))};
  const Plan plan = Schedule(snapshot, kNow);
  ASSERT_EQ(plan.starts.size(), 1u);
  EXPECT_EQ(plan.starts[0].job_id.value(), "fits");
  ASSERT_EQ(plan.waiting.size(), 1u);
  EXPECT_TRUE(plan.waiting[0].infeasible);
  EXPECT_EQ(*plan.waiting[0].sentence,
            "the job needs about 20.0 GB of memory on a cpu device (weights 1 GB), and the largest "
            "it may use has 8.6 GB; it would fit with gradient_checkpointing: true (4.0 GB)");
}

TEST(Schedule_Filter, MemoryThatIsNotKnown_KeepsNothingAway) {
  EXPECT_EQ(ParseMemoryNeeds("{\"memory\": {\"cpu\": 5}}"), MemoryNeeds());
  EXPECT_EQ(ParseMemoryNeeds("not JSON"), MemoryNeeds());
  const MemoryNeeds needs = Needing(5, 4).memory;
  EXPECT_EQ(ParseMemoryNeeds(FormatMemoryNeeds(needs)), needs);
}

TEST(Schedule_Rank, FasterDevices_ComeBeforeFullerWorkers) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1, 0, {}, true, 10),
                      MakeWorker("wrk-2", 2, 0, {}, true, 30),
                      MakeWorker("wrk-3", 2, 0, {}, true, 11)};
  snapshot.waiting = {MakeJob("job-a", 5)};
  EXPECT_EQ(Schedule(snapshot, kNow).starts.at(0).parts.at(0).worker_id, WorkerId("wrk-2"));
}

TEST(Schedule_Filter, MemoryKindModelAndLabels_AreRespected) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1), MakeWorker("wrk-2", 1, 1, {{"zone", "b"}})};
  JobRequirements memory;
  memory.min_memory_bytes = std::int64_t{40} << 30;
  JobRequirements wrong_model = Ranks(1, "cuda");
  wrong_model.gpu_models = {"A100"};
  JobRequirements label;
  label.labels["zone"] = "c";
  snapshot.waiting = {MakeJob("job-a", 9, memory), MakeJob("job-b", 8, wrong_model),
                      MakeJob("job-c", 7, label)};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, ElementsAre(Start{JobId("job-a"), {{WorkerId("wrk-2"), {"cuda:0"}}}}));
  ASSERT_EQ(plan.waiting.size(), 2u);
  EXPECT_TRUE(plan.waiting[0].infeasible);
  EXPECT_THAT(*plan.waiting[0].sentence, HasSubstr("A100"));
  EXPECT_TRUE(plan.waiting[1].infeasible);
  EXPECT_THAT(*plan.waiting[1].sentence, HasSubstr("zone=c"));
}

TEST(Schedule_Filter, WordOfAModel_IsEnough) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 0, 1)};
  JobRequirements word = Ranks(1);
  word.gpu_models = {"H10", "H100"};
  snapshot.waiting = {MakeJob("job-a", 9, word)};
  EXPECT_EQ(Schedule(snapshot, kNow).starts.size(), 1u);
  word.gpu_models = {"H10"};
  snapshot.waiting = {MakeJob("job-a", 9, word)};
  EXPECT_THAT(Schedule(snapshot, kNow).starts, IsEmpty());
}

TEST(Schedule_Filter, TaintedWorker_TakesOnlyJobsThatAskForIt) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 2)};
  auto offer = std::make_shared<WorkerOffer>(*snapshot.workers[0].offer);
  offer->taints["owner"] = "red";
  snapshot.workers[0].offer = offer;
  JobRequirements asks;
  asks.labels["owner"] = "red";
  snapshot.waiting = {MakeJob("job-a", 9), MakeJob("job-b", 8, asks)};
  const Plan plan = Schedule(snapshot, kNow);
  ASSERT_EQ(plan.starts.size(), 1u);
  EXPECT_EQ(plan.starts[0].job_id, JobId("job-b"));
}

TEST(Schedule_Filter, ReproducibleJobThatBegan_GoesOnOnTheSameSortOfDevice) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1, 1)};
  snapshot.waiting = {MakeJob("job-a", 9)};
  snapshot.waiting[0].device_class = "class of cpu";
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{JobId("job-a"), {{WorkerId("wrk-1"), {"cpu:0"}}}}));
  snapshot.waiting[0].device_class = "another";
  EXPECT_THAT(*Schedule(snapshot, kNow).waiting.at(0).sentence,
              HasSubstr("of the sort it began on (another)"));
}

TEST(Schedule_Draining, Worker_GetsNothingNew) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 2)};
  snapshot.workers[0].draining = true;
  WaitingJob check = MakeJob("job-b", 4);
  check.kind = WorkKind::kPreflight;
  snapshot.waiting = {MakeJob("job-a", 5), check};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  EXPECT_THAT(plan.preflights, IsEmpty());
}

TEST(Schedule_Backoff, JobBeforeItsTime_IsLookedAtAgainThen) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1)};
  snapshot.waiting = {MakeJob("job-a", 5)};
  snapshot.waiting[0].not_before = kNow + absl::Seconds(3);
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  EXPECT_EQ(plan.look_again, kNow + absl::Seconds(3));
  EXPECT_EQ(Schedule(snapshot, kNow + absl::Seconds(3)).starts.size(), 1u);
}

TEST(Schedule_Preflight, HoldsNoDevice_AndIsBoundedPerWorker) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1), MakeWorker("wrk-2", 1)};
  Occupy(snapshot, "wrk-1", {0});
  Occupy(snapshot, "wrk-2", {0});
  for (int i = 0; i < 5; ++i) {
    snapshot.waiting.push_back(MakeJob(absl::StrCat("job-", i), 100 - i));
    snapshot.waiting.back().kind = WorkKind::kPreflight;
  }
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.preflights, ElementsAre(PreflightStart{JobId("job-0"), WorkerId("wrk-1")},
                                           PreflightStart{JobId("job-1"), WorkerId("wrk-2")},
                                           PreflightStart{JobId("job-2"), WorkerId("wrk-1")},
                                           PreflightStart{JobId("job-3"), WorkerId("wrk-2")}));
  EXPECT_EQ(plan.waiting.size(), 1u);
}

TEST(Schedule_MaxStarts, MoreFit_AreStartedByTheNextPlanAtOnce) {
  ClusterSnapshot snapshot;
  auto policy = std::make_shared<SchedulingPolicy>();
  policy->max_starts = 2;
  snapshot.policy = policy;
  snapshot.workers = {MakeWorker("wrk-1", 4)};
  for (int i = 0; i < 4; ++i) snapshot.waiting.push_back(MakeJob(absl::StrCat("job-", i), 9 - i));
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_EQ(plan.starts.size(), 2u);
  EXPECT_EQ(plan.look_again, kNow);
}

}  // namespace
}  // namespace offshoot
