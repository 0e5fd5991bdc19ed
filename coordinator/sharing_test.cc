// How the scheduler shares: order, limits, fair share, reservations, preemption; and what holds for
// every plan, tried on random snapshots.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "coordinator/testing/cluster_snapshots.h"

namespace offshoot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> StartedIds(const Plan& plan) {
  std::vector<std::string> ids;
  for (const Start& start : plan.starts) ids.push_back(start.job_id.value());
  return ids;
}

const WaitingReason* ReasonOf(const Plan& plan, const std::string& id) {
  for (const WaitingReason& reason : plan.waiting) {
    if (reason.job_id == JobId(id)) return &reason;
  }
  return nullptr;
}

std::shared_ptr<SchedulingPolicy> PolicyOf(ClusterSnapshot& snapshot) {
  auto policy = std::make_shared<SchedulingPolicy>();
  snapshot.policy = policy;
  return policy;
}

TEST(Sharing_Teams, TheOneThatUsedLessForItsWeight_ComesFirst) {
  ClusterSnapshot snapshot;
  auto policy = PolicyOf(snapshot);
  policy->teams["blue"].weight = 4;
  snapshot.workers = {MakeWorker("wrk-1", 1)};
  snapshot.waiting = {MakeJob("job-a", 100, {}, 0, "red"), MakeJob("job-b", 1, {}, 0, "blue")};
  snapshot.use = {{"red", 1000}, {"blue", 3000}};
  EXPECT_THAT(StartedIds(Schedule(snapshot, kNow)), ElementsAre("job-b"));
  snapshot.use = {{"red", 1000}, {"blue", 5000}};
  EXPECT_THAT(StartedIds(Schedule(snapshot, kNow)), ElementsAre("job-a"));
}

TEST(Sharing_Teams, WithEqualUse_TakeTurnsByWeight) {
  ClusterSnapshot snapshot;
  PolicyOf(snapshot)->teams["blue"].weight = 2;
  snapshot.workers = {MakeWorker("wrk-1", 6)};
  for (int i = 0; i < 10; ++i) {
    snapshot.waiting.push_back(MakeJob(absl::StrCat("job-r", i), 100 - i, {}, 0, "red"));
    snapshot.waiting.push_back(MakeJob(absl::StrCat("job-b", i), 50 - i, {}, 0, "blue"));
  }
  const std::vector<std::string> ids = StartedIds(Schedule(snapshot, kNow));
  ASSERT_EQ(ids.size(), 6u);
  EXPECT_EQ(std::count_if(ids.begin(), ids.end(), [](const auto& id) { return id[4] == 'b'; }), 4);
}

TEST(Sharing_Priority, ComesBeforeFairShare_AndQueuesAddToIt) {
  ClusterSnapshot snapshot;
  PolicyOf(snapshot)->queues["urgent"].priority = 10;
  snapshot.workers = {MakeWorker("wrk-1", 1)};
  snapshot.waiting = {MakeJob("job-a", 100, {}, 5, "red"),
                      MakeJob("job-b", 1, {}, 0, "blue", "urgent")};
  snapshot.use = {{"blue", 1e9}};
  EXPECT_THAT(StartedIds(Schedule(snapshot, kNow)), ElementsAre("job-b"));
}

TEST(Sharing_Limits, OfDevicesAndJobs_AreKeptAndSaid) {
  ClusterSnapshot snapshot;
  auto policy = PolicyOf(snapshot);
  policy->teams["red"].limits.max_devices = 3;
  policy->queues["small"].limits.max_jobs = 1;
  snapshot.workers = {MakeWorker("wrk-1", 16)};
  Occupy(snapshot, "wrk-1", {0, 1}, 0, "red");
  snapshot.waiting = {MakeJob("job-a", 9, Ranks(2), 0, "red"), MakeJob("job-b", 8, {}, 0, "red"),
                      MakeJob("job-c", 7, Ranks(4), 0, "red"),
                      MakeJob("job-d", 6, {}, 0, "blue", "small"),
                      MakeJob("job-e", 5, {}, 0, "blue", "small")};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(StartedIds(plan), ::testing::UnorderedElementsAre("job-b", "job-d"));
  EXPECT_THAT(*ReasonOf(plan, "job-a")->sentence,
              HasSubstr("waiting for team red: it holds 2 of the 3 devices"));
  EXPECT_TRUE(ReasonOf(plan, "job-c")->infeasible);
  EXPECT_THAT(*ReasonOf(plan, "job-c")->sentence, HasSubstr("may hold 3 devices"));
  EXPECT_THAT(*ReasonOf(plan, "job-e")->sentence,
              HasSubstr("queue small: it runs 1 of the 1 jobs"));
}

TEST(Sharing_Reservation, DevicesForAGang_AreNotTakenByLaterJobs) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 4)};
  Occupy(snapshot, "wrk-1", {0}).expected_end = kNow + absl::Seconds(60);
  snapshot.waiting = {MakeJob("job-a", 9, Ranks(4)), MakeJob("job-b", 8)};
  const Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.starts, IsEmpty());
  EXPECT_THAT(*ReasonOf(plan, "job-b")->sentence, HasSubstr("kept for a larger job"));
  EXPECT_EQ(ReasonOf(plan, "job-a")->estimated_start, kNow + absl::Seconds(60));
}

TEST(Sharing_Backfill, OnlyJobsSureToBeGoneInTime_UseKeptDevices) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 4)};
  Occupy(snapshot, "wrk-1", {0}).latest_end = kNow + absl::Seconds(100);
  snapshot.waiting = {MakeJob("job-a", 9, Ranks(4)), MakeJob("job-b", 8), MakeJob("job-c", 7)};
  snapshot.waiting[1].runtime_left = absl::Seconds(101);
  snapshot.waiting[2].runtime_left = absl::Seconds(99);
  EXPECT_THAT(StartedIds(Schedule(snapshot, kNow)), ElementsAre("job-c"));
}

TEST(Sharing_Reservation, OtherKindsOfDevices_StayFreeForAll) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1, 2)};
  Occupy(snapshot, "wrk-1", {1});
  snapshot.waiting = {MakeJob("job-a", 9, Ranks(2, "cuda")), MakeJob("job-b", 8)};
  EXPECT_THAT(Schedule(snapshot, kNow).starts,
              ElementsAre(Start{JobId("job-b"), {{WorkerId("wrk-1"), {"cpu:0"}}}}));
}

TEST(Sharing_Preemption, LowestAndYoungest_MakeRoomAndNoMoreThanNeeded) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 4)};
  Occupy(snapshot, "wrk-1", {0}, 1);
  Occupy(snapshot, "wrk-1", {1}, 0).started = kNow - absl::Seconds(500);
  Occupy(snapshot, "wrk-1", {2}, 0);
  Occupy(snapshot, "wrk-1", {3}, 9);
  snapshot.waiting = {MakeJob("job-a", 9, Ranks(2), 5)};
  Plan plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.preemptions, ElementsAre(Preemption{JobId("run-3"), JobId("job-a")},
                                            Preemption{JobId("run-2"), JobId("job-a")}));
  // Until they have stopped nobody else is asked.
  snapshot.running[1].stopping = snapshot.running[2].stopping = true;
  plan = Schedule(snapshot, kNow);
  EXPECT_THAT(plan.preemptions, IsEmpty());
  EXPECT_THAT(plan.starts, IsEmpty());
}

TEST(Sharing_Preemption, EqualPriorityOrSwitchedOff_AsksNobody) {
  ClusterSnapshot snapshot;
  snapshot.workers = {MakeWorker("wrk-1", 1)};
  Occupy(snapshot, "wrk-1", {0}, 5);
  snapshot.waiting = {MakeJob("job-a", 9, {}, 5)};
  EXPECT_THAT(Schedule(snapshot, kNow).preemptions, IsEmpty());
  snapshot.waiting = {MakeJob("job-a", 9, {}, 6)};
  EXPECT_EQ(Schedule(snapshot, kNow).preemptions.size(), 1u);
  PolicyOf(snapshot)->preemption = false;
  EXPECT_THAT(Schedule(snapshot, kNow).preemptions, IsEmpty());
}

// --- what holds for every plan ---

ClusterSnapshot RandomSnapshot(std::mt19937& random) {
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  ClusterSnapshot snapshot;
  auto policy = PolicyOf(snapshot);
  for (const char* team : {"red", "blue"}) {
    if (below(2) == 0) policy->teams[team].limits.max_devices = 1 + below(8);
    if (below(3) == 0) policy->teams[team].limits.max_jobs = 1 + below(4);
    policy->teams[team].weight = 1 + below(3);
    snapshot.use.push_back({team, static_cast<double>(below(5000))});
  }
  if (below(2) == 0) policy->queues["fast"].priority = 3;
  if (below(5) == 0) policy->max_starts = 1 + below(3);
  policy->preemption = below(4) != 0;
  const int workers = below(6);
  for (int i = 0; i < workers; ++i) {
    const std::string id = absl::StrCat("wrk-", i);
    snapshot.workers.push_back(MakeWorker(
        id, below(4), below(3), {{"rack", absl::StrCat("r", below(2))}}, below(4) != 0, below(3)));
    snapshot.workers.back().connected = below(5) != 0;
    snapshot.workers.back().draining = below(7) == 0;
    const int devices = static_cast<int>(snapshot.workers.back().offer->devices.size());
    for (int d = 0; d < devices; ++d) {
      if (below(3) != 0) continue;
      RunningJob& job = Occupy(snapshot, id, {d}, below(4), below(2) == 0 ? "red" : "blue");
      job.stopping = below(6) == 0;
      job.preemptible = below(6) != 0;
      if (below(2) == 0) job.expected_end = kNow + absl::Seconds(below(1000));
      if (below(3) == 0) job.latest_end = kNow + absl::Seconds(below(2000));
    }
  }
  const int jobs = below(25);
  for (int i = 0; i < jobs; ++i) {
    JobRequirements wanted = Ranks(1 + below(5), below(3) == 0 ? "cpu" : "");
    if (below(4) == 0) wanted.min_ranks = 1 + below(wanted.ranks);
    if (below(4) == 0) wanted.max_ranks = wanted.ranks + below(3);
    if (below(9) == 0) wanted.labels["rack"] = "r1";
    wanted.exchange_artifacts = below(4) == 0;
    snapshot.waiting.push_back(MakeJob(absl::StrCat("job-", i), below(5), wanted, below(3),
                                       below(2) == 0 ? "red" : "blue",
                                       below(4) == 0 ? "fast" : "default"));
    WaitingJob& job = snapshot.waiting.back();
    if (below(4) == 0) job.kind = WorkKind::kPreflight;
    if (below(4) == 0) job.runtime_left = absl::Seconds(below(2000));
    if (below(9) == 0) job.not_before = kNow + absl::Seconds(below(9));
    if (below(9) == 0) job.device_class = "class of cpu";
  }
  return snapshot;
}

void ExpectWithinLimits(const ClusterSnapshot& snapshot, const Plan& plan) {
  std::map<std::string, int> devices;
  std::map<std::string, int> jobs;
  for (const RunningJob& job : snapshot.running) {
    devices[job.job_class->team] += static_cast<int>(job.parts[0].devices.size());
    jobs[job.job_class->team] += 1;
  }
  std::set<std::string> grown;
  for (const Start& start : plan.starts) {
    const auto job = std::find_if(snapshot.waiting.begin(), snapshot.waiting.end(),
                                  [&](const auto& other) { return other.job_id == start.job_id; });
    const std::string& team = job->job_class->team;
    grown.insert(team);
    jobs[team] += 1;
    for (const StartPart& part : start.parts) {
      devices[team] += static_cast<int>(part.device_ids.size());
    }
  }
  for (const std::string& team : grown) {
    const ShareLimits& limits = snapshot.policy->TeamOf(team).limits;
    EXPECT_TRUE(limits.max_devices == 0 || devices[team] <= limits.max_devices) << team;
    EXPECT_TRUE(limits.max_jobs == 0 || jobs[team] <= limits.max_jobs) << team;
  }
}

void ExpectSound(const ClusterSnapshot& snapshot, const Plan& plan) {
  std::set<std::pair<WorkerId, std::string>> taken;
  std::map<WorkerId, const SchedulableWorker*> workers;
  for (const SchedulableWorker& worker : snapshot.workers) workers[worker.id()] = &worker;
  for (const RunningJob& job : snapshot.running) {
    for (const int device : job.parts[0].devices) {
      const auto& devices = workers[job.parts[0].worker_id]->offer->devices;
      taken.insert({job.parts[0].worker_id, devices[static_cast<std::size_t>(device)].device_id});
    }
  }
  std::set<JobId> answered;
  for (const Start& start : plan.starts) {
    EXPECT_TRUE(answered.insert(start.job_id).second);
    const auto job = std::find_if(snapshot.waiting.begin(), snapshot.waiting.end(),
                                  [&](const auto& other) { return other.job_id == start.job_id; });
    const JobRequirements& wanted = job->job_class->requirements;
    EXPECT_LE(job->not_before, kNow);
    std::set<WorkerId> on;
    std::set<std::string> kinds;
    int ranks = 0;
    for (const StartPart& part : start.parts) {
      EXPECT_TRUE(on.insert(part.worker_id).second) << "two parts on one worker";
      EXPECT_TRUE(workers[part.worker_id]->connected && !workers[part.worker_id]->draining);
      EXPECT_TRUE(start.parts.size() == 1 || wanted.exchange_artifacts ||
                  workers[part.worker_id]->offer->joins_gangs);
      for (const std::string& device : part.device_ids) {
        EXPECT_TRUE(taken.insert({part.worker_id, device}).second) << "booked twice";
        kinds.insert(device.substr(0, device.find(':')));
        ++ranks;
      }
    }
    EXPECT_EQ(kinds.size(), 1u);
    EXPECT_GE(ranks, wanted.min_ranks > 0 ? wanted.min_ranks : wanted.ranks) << "half a gang";
    EXPECT_LE(ranks, std::max(wanted.ranks, wanted.max_ranks));
  }
  for (const PreflightStart& start : plan.preflights) {
    EXPECT_TRUE(answered.insert(start.job_id).second);
  }
  for (const WaitingReason& reason : plan.waiting) {
    EXPECT_TRUE(answered.insert(reason.job_id).second);
    EXPECT_FALSE(reason.sentence->empty());
  }
  EXPECT_EQ(answered.size(), snapshot.waiting.size());
  std::set<JobId> asked;
  for (const Preemption& preemption : plan.preemptions) {
    EXPECT_TRUE(asked.insert(preemption.job_id).second);
    const auto victim =
        std::find_if(snapshot.running.begin(), snapshot.running.end(),
                     [&](const auto& other) { return other.job_id == preemption.job_id; });
    EXPECT_TRUE(victim->preemptible && !victim->stopping);
  }
}

TEST(Sharing_RandomSnapshots, EveryPlan_IsSoundAndTheSameInAnyOrder) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 1000; ++round) {
    ClusterSnapshot snapshot = RandomSnapshot(random);
    const Plan plan = Schedule(snapshot, kNow);
    ExpectSound(snapshot, plan);
    ExpectWithinLimits(snapshot, plan);
    std::shuffle(snapshot.waiting.begin(), snapshot.waiting.end(), random);
    std::shuffle(snapshot.workers.begin(), snapshot.workers.end(), random);
    std::shuffle(snapshot.running.begin(), snapshot.running.end(), random);
    std::shuffle(snapshot.use.begin(), snapshot.use.end(), random);
    EXPECT_EQ(Schedule(snapshot, kNow), plan);
    if (HasFailure()) return;
  }
}

// A gang that needs every device, behind an endless stream of small jobs, starts in bounded time.
TEST(Sharing_Starvation, GangBehindAStreamOfSmallJobs_Starts) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  ClusterSnapshot snapshot;
  PolicyOf(snapshot)->longest_backfill = absl::Seconds(60);
  snapshot.workers = {MakeWorker("wrk-1", 4), MakeWorker("wrk-2", 4)};
  absl::Time now = kNow;
  std::map<JobId, absl::Time> ends;
  int made = 0;
  for (int second = 0; second < 2000; ++second, now += absl::Seconds(1)) {
    std::erase_if(snapshot.running, [&](const RunningJob& job) { return ends[job.job_id] <= now; });
    while (snapshot.waiting.size() < 6) {
      WaitingJob job = MakeJob(absl::StrCat("job-", 1000 + made), 0);
      job.created = now;
      if (made % 3 == 0) job.runtime_left = absl::Seconds(30 + random() % 60);
      ++made;
      snapshot.waiting.push_back(job);
    }
    if (second == 100) {
      snapshot.waiting.push_back(MakeJob("job-gang", 0, Ranks(8)));
      snapshot.waiting.back().created = now;
    }
    const Plan plan = Schedule(snapshot, now);
    for (const Start& start : plan.starts) {
      if (start.job_id == JobId("job-gang")) {
        EXPECT_LT(second, 100 + 6 * 100 + 100) << "after the jobs before it, and those under way";
        return;
      }
      const auto job = std::find_if(snapshot.waiting.begin(), snapshot.waiting.end(),
                                    [&](const auto& each) { return each.job_id == start.job_id; });
      RunningJob running;
      running.job_id = start.job_id;
      running.job_class = job->job_class;
      for (const StartPart& part : start.parts) {
        DevicePart& to = running.parts.emplace_back();
        to.worker_id = part.worker_id;
        for (const std::string& device : part.device_ids) to.devices.push_back(device.back() - '0');
      }
      running.started = now;
      ends[job->job_id] =
          now + std::min<absl::Duration>(job->runtime_left, absl::Seconds(20 + random() % 80));
      if (job->runtime_left != absl::InfiniteDuration())
        running.latest_end = now + job->runtime_left;
      snapshot.running.push_back(running);
      snapshot.waiting.erase(job);
    }
  }
  ADD_FAILURE() << "the gang never started";
}

}  // namespace
}  // namespace offshoot
