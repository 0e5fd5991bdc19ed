#include "coordinator/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"

namespace offshoot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

SchedulableWorker Worker(const std::string& id, int cpus, int gpus = 0) {
  SchedulableWorker worker;
  worker.worker_id = WorkerId(id);
  worker.name = id;
  worker.connected = true;
  for (int i = 0; i < cpus; ++i) {
    worker.devices.push_back(
        {absl::StrCat("cpu:", i), "cpu", "EPYC", std::int64_t{8} << 30, false});
  }
  for (int i = 0; i < gpus; ++i) {
    worker.devices.push_back(
        {absl::StrCat("cuda:", i), "cuda", "H100", std::int64_t{80} << 30, false});
  }
  return worker;
}

WaitingJob Job(const std::string& id, int age_s, JobRequirements requirements = {},
               int priority = 0) {
  auto definition = std::make_shared<JobDefinition>();
  definition->job_id = JobId(id);
  definition->created = kNow - absl::Seconds(age_s);
  definition->requirements = std::move(requirements);
  definition->priority = priority;
  return WaitingJob{definition, WorkKind::kTrain, absl::InfinitePast()};
}

JobRequirements Ranks(int ranks, const std::string& kind = "") {
  JobRequirements requirements;
  requirements.ranks = ranks;
  requirements.device_kind = kind;
  return requirements;
}

TEST(Schedule_NoWorkers, JobWaits_ForAWorker) {
  ClusterSnapshot snapshot;
  snapshot.waiting = {Job("job-a", 1)};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  ASSERT_EQ(plan.waiting.size(), 1u);
  EXPECT_FALSE(plan.waiting[0].infeasible);
  EXPECT_THAT(plan.waiting[0].sentence, HasSubstr("waiting for a worker"));
}

TEST(Schedule_OneDevice, OldestOfHighestPriority_GoesFirst) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 1)};
  snapshot.waiting = {Job("job-a", 50), Job("job-b", 100), Job("job-c", 1, {}, 5),
                      Job("job-d", 2, {}, 5)};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, ElementsAre(Start{JobId("job-d"), WorkerId("wrk-1"), {"cpu:0"}}));
  EXPECT_EQ(plan.waiting.size(), 3u);
  EXPECT_THAT(plan.waiting[0].sentence, HasSubstr("waiting for 1 device to become free"));
}

TEST(Schedule_Ties, EqualAge_IsBrokenById) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 1)};
  snapshot.waiting = {Job("job-b", 5), Job("job-a", 5)};
  EXPECT_EQ(Schedule(snapshot, kNow).starts.at(0).job_id, JobId("job-a"));
}

TEST(Schedule_Gang, NotEnoughFreeDevices_IsPlacedNotAtAll) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 4)};
  snapshot.workers[0].devices[1].busy = true;
  snapshot.waiting = {Job("job-a", 5, Ranks(4))};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  EXPECT_FALSE(plan.waiting.at(0).infeasible);
  EXPECT_THAT(plan.waiting.at(0).sentence, HasSubstr("4 devices"));
}

TEST(Schedule_Gang, EnoughDevices_IsPlacedWholeOnOneKind) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 1, 2)};
  snapshot.waiting = {Job("job-a", 5, Ranks(2))};
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{JobId("job-a"), WorkerId("wrk-1"), {"cuda:0", "cuda:1"}}));
}

TEST(Schedule_Gang, MoreThanAnyWorkerHas_IsInfeasibleWithTheNumber) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 2), Worker("wrk-2", 3)};
  snapshot.waiting = {Job("job-a", 5, Ranks(4))};
  const Plan plan = Schedule(snapshot, kNow);
  ASSERT_EQ(plan.waiting.size(), 1u);
  EXPECT_TRUE(plan.waiting[0].infeasible);
  EXPECT_THAT(plan.waiting[0].sentence, HasSubstr("the most that one offers is 3"));
}

TEST(Schedule_Rank, SmallJob_TakesTheFullestWorkerThatFits) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 4), Worker("wrk-2", 1), Worker("wrk-3", 2)};
  snapshot.waiting = {Job("job-a", 5)};
  EXPECT_EQ(Schedule(snapshot, kNow).starts.at(0).worker_id, WorkerId("wrk-2"));
}

TEST(Schedule_Filter, MemoryKindModelAndLabels_AreRespected) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 1), Worker("wrk-2", 1, 1)};
  snapshot.workers[1].labels["zone"] = "b";
  JobRequirements memory;
  memory.min_memory_bytes = std::int64_t{40} << 30;
  JobRequirements wrong_model = Ranks(1, "cuda");
  wrong_model.gpu_models = {"A100"};
  JobRequirements label;
  label.labels["zone"] = "c";
  snapshot.waiting = {Job("job-a", 9, memory), Job("job-b", 8, wrong_model),
                      Job("job-c", 7, label)};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, ElementsAre(Start{JobId("job-a"), WorkerId("wrk-2"), {"cuda:0"}}));
  ASSERT_EQ(plan.waiting.size(), 2u);
  EXPECT_TRUE(plan.waiting[0].infeasible);
  EXPECT_THAT(plan.waiting[0].sentence, HasSubstr("A100"));
  EXPECT_TRUE(plan.waiting[1].infeasible);
  EXPECT_THAT(plan.waiting[1].sentence, HasSubstr("zone=c"));
}

TEST(Schedule_Draining, Worker_GetsNothingNew) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 2)};
  snapshot.workers[0].draining = true;
  WaitingJob check = Job("job-b", 4);
  check.kind = WorkKind::kPreflight;
  snapshot.waiting = {Job("job-a", 5), check};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  EXPECT_THAT(plan.preflights, IsEmpty());
}

TEST(Schedule_Backoff, JobBeforeItsTime_IsLookedAtAgainThen) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 1)};
  snapshot.waiting = {Job("job-a", 5)};
  snapshot.waiting[0].not_before = kNow + absl::Seconds(3);
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  EXPECT_EQ(plan.look_again, kNow + absl::Seconds(3));
  EXPECT_EQ(Schedule(snapshot, kNow + absl::Seconds(3)).starts.size(), 1u);
}

TEST(Schedule_Preflight, HoldsNoDevice_AndIsBoundedPerWorker) {
  ClusterSnapshot snapshot;
  snapshot.workers = {Worker("wrk-1", 1), Worker("wrk-2", 1)};
  for (SchedulableWorker& worker : snapshot.workers) worker.devices[0].busy = true;
  for (int i = 0; i < 5; ++i) {
    snapshot.waiting.push_back(Job(absl::StrCat("job-", i), 100 - i));
    snapshot.waiting.back().kind = WorkKind::kPreflight;
  }
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.preflights, ElementsAre(PreflightStart{JobId("job-0"), WorkerId("wrk-1")},
                                           PreflightStart{JobId("job-1"), WorkerId("wrk-2")},
                                           PreflightStart{JobId("job-2"), WorkerId("wrk-1")},
                                           PreflightStart{JobId("job-3"), WorkerId("wrk-2")}));
  EXPECT_EQ(plan.waiting.size(), 1u);
}

// Whatever the snapshot: nothing is booked twice, no gang is half placed, every job is answered,
// and the order in which the snapshot lists things does not matter.
TEST(Schedule_RandomSnapshots, Plan_HoldsItsInvariants) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    ClusterSnapshot snapshot;
    const int workers = static_cast<int>(random() % 6);
    for (int i = 0; i < workers; ++i) {
      snapshot.workers.push_back(Worker(absl::StrCat("wrk-", i), static_cast<int>(random() % 4),
                                        static_cast<int>(random() % 3)));
      snapshot.workers.back().connected = random() % 5 != 0;
      snapshot.workers.back().draining = random() % 7 == 0;
      for (SchedulableDevice& device : snapshot.workers.back().devices) {
        device.busy = random() % 3 == 0;
      }
    }
    const int jobs = static_cast<int>(random() % 20);
    for (int i = 0; i < jobs; ++i) {
      snapshot.waiting.push_back(Job(absl::StrCat("job-", i), static_cast<int>(random() % 5),
                                     Ranks(1 + static_cast<int>(random() % 4)),
                                     static_cast<int>(random() % 3)));
      if (random() % 4 == 0) snapshot.waiting.back().kind = WorkKind::kPreflight;
    }
    const Plan plan = Schedule(snapshot, kNow);
    std::set<std::pair<WorkerId, std::string>> taken;
    for (const SchedulableWorker& worker : snapshot.workers) {
      for (const SchedulableDevice& device : worker.devices) {
        if (device.busy) taken.insert({worker.worker_id, device.device_id});
      }
    }
    std::set<JobId> answered;
    for (const Start& start : plan.starts) {
      EXPECT_TRUE(answered.insert(start.job_id).second);
      for (const std::string& device : start.device_ids) {
        EXPECT_TRUE(taken.insert({start.worker_id, device}).second) << "booked twice";
      }
      const auto job = std::find_if(snapshot.waiting.begin(), snapshot.waiting.end(),
                                    [&](const auto& other) { return other.id() == start.job_id; });
      EXPECT_EQ(static_cast<int>(start.device_ids.size()), job->definition->requirements.ranks);
    }
    for (const PreflightStart& start : plan.preflights) {
      EXPECT_TRUE(answered.insert(start.job_id).second);
    }
    for (const WaitingReason& reason : plan.waiting) {
      EXPECT_TRUE(answered.insert(reason.job_id).second);
      EXPECT_FALSE(reason.sentence.empty());
    }
    EXPECT_EQ(answered.size(), snapshot.waiting.size());
    std::shuffle(snapshot.waiting.begin(), snapshot.waiting.end(), random);
    std::shuffle(snapshot.workers.begin(), snapshot.workers.end(), random);
    EXPECT_EQ(Schedule(snapshot, kNow), plan);
  }
}

}  // namespace
}  // namespace offshoot
