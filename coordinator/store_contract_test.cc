// One contract, both stores.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "absl/strings/str_cat.h"
#include "common/temporary_directory.h"
#include "coordinator/store_memory.h"
#include "coordinator/store_sqlite.h"

namespace offshoot {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

const absl::Time kStored = absl::FromUnixMicros(1'700'000'000'123'456);

JobRecord NewJob(const std::string& id, const std::string& request_id = "") {
  JobDefinition definition;
  definition.job_id = JobId(id);
  definition.request_id = request_id;
  definition.name = "name of " + id;
  definition.team = "red";
  definition.priority = 3;
  definition.spec_yaml = "base_model: /m\n# π\n";
  definition.spec_digest = "sha256:spec";
  definition.created = kStored;
  definition.max_runtime = absl::Hours(2);
  definition.requirements.ranks = 2;
  definition.requirements.labels["zone"] = "b";
  return Submit(definition).job;
}

StoreWrite WriteOf(const JobRecord& job) {
  StoreWrite write;
  write.new_jobs.push_back(job);
  return write;
}

// A job with everything in it.
JobRecord FullJob(const std::string& id) {
  JobRecord job = NewJob(id);
  job.state = JobState::kRunning;
  job.reason_code = "TRAINER_KILLED";
  job.message = "invalid \xFF byte";
  job.culprit = "ant";
  job.log_tail = "last line";
  job.preflighted = true;
  job.stop_intent = StopIntent::kPause;
  job.failures = 2;
  job.not_before = kStored + absl::Seconds(4);
  job.started = kStored;
  job.total_steps = 100;
  job.progress.step = 9;
  job.progress.total_steps = 100;
  job.progress.train_loss = 2.5;
  job.checkpoint = CheckpointRecord{8, 1, {{"manifest.json", "sha256:a", 12}}};
  job.result = ResultRecord{1, {{"merged/model.safetensors", "sha256:b", 1}}, 4.25, 2.9};
  AttemptRecord attempt;
  attempt.number = 1;
  attempt.members = {{WorkerId("wrk-1"), "ant", {"cpu:0", "cpu:1"}, 0, 4, false},
                     {WorkerId("wrk-2"), "bee", {"cpu:0"}, 2, 1, true}};
  attempt.lease_id = "lease-1";
  attempt.first_step = 1;
  attempt.last_step = 9;
  attempt.started = kStored;
  job.attempts = {attempt};
  return job;
}

class StoreContract : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { Reopen(); }
  bool durable() const { return GetParam(); }
  void Reopen() {
    if (!durable()) {
      if (store == nullptr) store = std::make_unique<MemoryStore>();
      return;
    }
    store.reset();
    auto opened = SqliteStore::Open(directory.File("store.sqlite3"));
    ASSERT_TRUE(opened.ok()) << opened.status();
    store = *std::move(opened);
  }
  void Commit(const StoreWrite& write) {
    const auto version = store->Commit(write);
    ASSERT_TRUE(version.ok()) << version.status();
  }

  TemporaryDirectory directory;
  std::unique_ptr<Store> store;
};

INSTANTIATE_TEST_SUITE_P(Stores, StoreContract, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Sqlite" : "Memory"; });

TEST_P(StoreContract, Job_IsReadAsItWasWritten) {
  StoreWrite write;
  const JobRecord job = FullJob("job-a");
  write.new_jobs.push_back(job);
  auto inputs = std::make_shared<JobInputs>();
  inputs->preflight_key = "sha256:key";
  inputs->inputs.push_back({"/base_model/path", {{"", "sha256:m", 98}}, "/m.gguf", "sha256:m"});
  write.inputs.emplace_back(job.id(), inputs);
  Commit(write);
  Reopen();
  const auto read = store->GetJob(job.id());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->definition->name, job.definition->name);
  EXPECT_EQ(read->definition->spec_yaml, job.definition->spec_yaml);
  EXPECT_EQ(read->definition->requirements, job.definition->requirements);
  EXPECT_EQ(read->definition->max_runtime, job.definition->max_runtime);
  EXPECT_EQ(read->definition->created, job.definition->created);
  EXPECT_EQ(read->state, job.state);
  EXPECT_EQ(read->stop_intent, job.stop_intent);
  EXPECT_EQ(read->failures, job.failures);
  EXPECT_EQ(read->not_before, job.not_before);
  EXPECT_EQ(read->finished, job.finished);
  EXPECT_EQ(read->progress.train_loss, 2.5);
  EXPECT_EQ(read->checkpoint, job.checkpoint);
  EXPECT_EQ(read->result, job.result);
  EXPECT_EQ(read->attempts, job.attempts);
  ASSERT_NE(read->inputs, nullptr);
  EXPECT_EQ(*read->inputs, *inputs);
}

TEST_P(StoreContract, UnknownThings_AreNotFoundByName) {
  EXPECT_TRUE(absl::IsNotFound(store->GetJob(JobId("job-x")).status()));
  EXPECT_TRUE(absl::IsNotFound(store->GetBaseModel("llama").status()));
  EXPECT_TRUE(absl::IsNotFound(store->GetDerivative(DerivativeId("drv-x")).status()));
  EXPECT_EQ(*store->FindPreflight("sha256:k"), std::nullopt);
  EXPECT_EQ(*store->FindRequest("r"), std::nullopt);
}

TEST_P(StoreContract, FailedCommit_WritesNothing) {
  Commit(WriteOf(NewJob("job-a", "request-1")));
  StoreWrite write = WriteOf(NewJob("job-b"));
  write.new_jobs.push_back(NewJob("job-c", "request-1"));
  write.events.push_back(
      {JobId("job-b"), 1, kStored, JobState::kValidating, 0, "submitted", "", "", 0});
  EXPECT_TRUE(absl::IsAlreadyExists(store->Commit(write).status()));
  EXPECT_TRUE(absl::IsNotFound(store->GetJob(JobId("job-b")).status()));
  EXPECT_THAT(*store->ListEvents(JobId("job-b"), 1, 10), IsEmpty());
  Commit(WriteOf(NewJob("job-b")));
}

TEST_P(StoreContract, StaleVersion_IsRefused) {
  const std::int64_t version = store->Load()->version;
  Commit(WriteOf(NewJob("job-a")));
  StoreWrite write = WriteOf(NewJob("job-b"));
  write.if_version = version;
  EXPECT_TRUE(absl::IsAborted(store->Commit(write).status()));
  write.if_version = store->Load()->version;
  EXPECT_EQ(*store->Commit(write), version + 2);
  Reopen();
  EXPECT_EQ(store->Load()->version, version + 2);
}

TEST_P(StoreContract, RequestId_FindsItsJob) {
  Commit(WriteOf(NewJob("job-a", "request-1")));
  Commit(WriteOf(NewJob("job-b")));
  Commit(WriteOf(NewJob("job-c")));
  Reopen();
  EXPECT_EQ((*store->FindRequest("request-1"))->id(), JobId("job-a"));
  EXPECT_EQ(*store->FindRequest("request-2"), std::nullopt);
}

TEST_P(StoreContract, Load_GivesLiveJobsEffectsAndWorkers) {
  StoreWrite write;
  for (const char* id : {"job-a", "job-b", "job-c"}) write.new_jobs.push_back(FullJob(id));
  write.new_jobs[1].state = JobState::kCancelled;  // its attempt is still open
  write.new_jobs[2].state = JobState::kSucceeded;
  write.new_jobs[2].attempts[0].open = false;
  write.new_effects = {{7, {EffectKind::kStopAttempt, JobId("job-b"), 1, true, "CANCELLED"}},
                       {8, {EffectKind::kPublish, JobId("job-a"), 1, false, ""}}};
  WorkerRecord worker;
  worker.worker_id = WorkerId("wrk-1");
  worker.name = "ant";
  worker.draining = true;
  worker.labels["zone"] = "b";
  worker.devices = {{"cpu:0", "cpu", 2, 1 << 30, "EPYC", ""}};
  write.workers = {worker};
  Commit(write);
  StoreWrite done;
  done.done_effects = {8};
  Commit(done);
  Reopen();
  const auto state = store->Load();
  ASSERT_TRUE(state.ok()) << state.status();
  ASSERT_THAT(state->jobs, SizeIs(2));
  EXPECT_EQ(state->jobs[0].id(), JobId("job-a"));
  EXPECT_EQ(state->jobs[1].id(), JobId("job-b"));
  ASSERT_THAT(state->effects, SizeIs(1));
  EXPECT_EQ(state->effects[0].effect_id, 7);
  EXPECT_EQ(state->effects[0].effect, write.new_effects[0].effect);
  EXPECT_THAT(state->workers, ElementsAre(worker));
  EXPECT_GE(state->last_effect_id, 7);
}

TEST_P(StoreContract, ListJobs_FiltersAndPagesNewestFirst) {
  StoreWrite write;
  for (int i = 0; i < 9; ++i) {
    write.new_jobs.push_back(NewJob(absl::StrCat("job-", i)));
    if (i % 2 == 0) write.new_jobs.back().state = JobState::kQueued;
  }
  Commit(write);
  auto ids = [&](const JobFilter& filter) {
    std::vector<std::string> found;
    const auto listed = store->ListJobs(filter);
    EXPECT_TRUE(listed.ok()) << listed.status();
    for (const JobRecord& job : listed.value()) found.push_back(job.id().value());
    return found;
  };
  JobFilter filter;
  filter.limit = 3;
  EXPECT_THAT(ids(filter), ElementsAre("job-8", "job-7", "job-6"));
  filter.before = JobId("job-6");
  EXPECT_THAT(ids(filter), ElementsAre("job-5", "job-4", "job-3"));
  filter.states = {JobState::kQueued, JobState::kFailed};
  EXPECT_THAT(ids(filter), ElementsAre("job-4", "job-2", "job-0"));
  filter = JobFilter();
  filter.name_contains = "of job-7";
  EXPECT_THAT(ids(filter), ElementsAre("job-7"));
  filter.name_contains = "%";  // no pattern language
  EXPECT_THAT(ids(filter), IsEmpty());
  filter = JobFilter();
  filter.team = "blue";
  EXPECT_THAT(ids(filter), IsEmpty());
}

TEST_P(StoreContract, Events_AreReadFromAnySequence) {
  StoreWrite write = WriteOf(NewJob("job-a"));
  for (int i = 1; i <= 5; ++i) {
    write.events.push_back({JobId("job-a"), i, kStored, JobState::kRunning, 1, "checkpointed", "",
                            absl::StrCat("message ", i), 10 * i});
  }
  Commit(write);
  Reopen();
  const auto events = store->ListEvents(JobId("job-a"), 3, 2);
  ASSERT_TRUE(events.ok());
  EXPECT_THAT(*events, ElementsAre(write.events[2], write.events[3]));
}

TEST_P(StoreContract, FileDigest_HoldsForTheSameFileOnly) {
  StoreWrite write;
  const FileIdentity identity{"/m.gguf", 98, 1'700'000'000'000'000'001, 18446744073709551615ull};
  write.file_digests = {{identity, "sha256:m"}};
  Commit(write);
  Reopen();
  EXPECT_EQ(*store->FindFileDigest(identity), "sha256:m");
  EXPECT_THAT(*store->FindFilesByDigest("sha256:m"), ElementsAre(identity));
  EXPECT_THAT(*store->FindFilesByDigest("sha256:n"), IsEmpty());
  for (const auto& change : std::vector<std::function<void(FileIdentity&)>>{
           [](auto& i) { i.path = "/n"; }, [](auto& i) { i.size_bytes++; },
           [](auto& i) { i.modified_ns++; }, [](auto& i) { i.inode--; }}) {
    FileIdentity other = identity;
    change(other);
    EXPECT_EQ(*store->FindFileDigest(other), std::nullopt);
  }
}

TEST_P(StoreContract, Models_AreListedByName) {
  StoreWrite write;
  for (const char* name : {"b", "a", "c"}) {
    write.base_models.push_back({name,
                                 "sha256:m",
                                 "Qwen/Qwen3",
                                 "apache-2.0",
                                 "/m",
                                 {{"config.json", "sha256:c", 3}},
                                 kStored,
                                 "red"});
  }
  Commit(write);
  Reopen();
  EXPECT_EQ(*store->GetBaseModel("b"), write.base_models[0]);
  EXPECT_THAT(*store->ListBaseModels("a", 2),
              ElementsAre(write.base_models[0], write.base_models[2]));
}

TEST_P(StoreContract, Derivative_PublishedTwice_IsThereOnce) {
  StoreWrite write = WriteOf(NewJob("job-a"));
  DerivativeRecord derivative;
  derivative.derivative_id = DerivativeId("drv-1");
  derivative.job_id = JobId("job-a");
  derivative.team = "red";
  derivative.base_model_digest = "sha256:m";
  derivative.digest = "sha256:d";
  derivative.files = {{"adapter_model.safetensors", "sha256:f", 4}};
  derivative.eval_loss = 2.5;
  derivative.created = kStored;
  write.derivatives = {derivative};
  Commit(write);
  StoreWrite again;
  again.derivatives = {derivative};
  Commit(again);
  Reopen();
  EXPECT_EQ(*store->GetDerivative(DerivativeId("drv-1")), derivative);
  EXPECT_THAT(*store->ListDerivatives({}), ElementsAre(derivative));
  EXPECT_THAT(*store->ListDerivatives({"sha256:other", "", {}, 50}), IsEmpty());
  EXPECT_THAT(*store->ListDerivatives({"", "red", DerivativeId("drv-1"), 50}), IsEmpty());
}

TEST_P(StoreContract, References_AreReplacedByOwner) {
  StoreWrite write;
  write.references = {{"job:a", {"sha256:1", "sha256:2"}}, {"job:b", {"sha256:2"}}};
  Commit(write);
  EXPECT_TRUE(*store->IsReferenced("sha256:1"));
  StoreWrite next;
  next.references = {{"job:a", {}}};
  Commit(next);
  Reopen();
  EXPECT_FALSE(*store->IsReferenced("sha256:1"));
  EXPECT_TRUE(*store->IsReferenced("sha256:2"));
}

TEST_P(StoreContract, PreflightAnswer_IsKept) {
  StoreWrite write;
  write.preflights = {{"sha256:k", R"({"rows": 3})"}};
  Commit(write);
  Reopen();
  EXPECT_EQ(*store->FindPreflight("sha256:k"), R"({"rows": 3})");
}

TEST(SqliteStore_Open, FileOfANewerVersion_IsRefused) {
  TemporaryDirectory directory;
  const std::string path = directory.File("store.sqlite3");
  { ASSERT_TRUE(SqliteStore::Open(path).ok()); }
  auto connection = SqliteConnection::Open(path);
  ASSERT_TRUE(connection.ok());
  ASSERT_TRUE(connection->Execute("PRAGMA user_version = 4711").ok());
  const auto opened = SqliteStore::Open(path);
  EXPECT_TRUE(absl::IsFailedPrecondition(opened.status()));
  EXPECT_THAT(std::string(opened.status().message()), testing::HasSubstr("4711"));
}

TEST(SqliteStore_Open, FileThatIsNoDatabase_IsNamed) {
  TemporaryDirectory directory;
  const std::string path = directory.File("store.sqlite3");
  FILE* file = fopen(path.c_str(), "w");
  fputs(std::string(8192, 'x').c_str(), file);
  fclose(file);
  const auto opened = SqliteStore::Open(path);
  EXPECT_FALSE(opened.ok());
  EXPECT_THAT(std::string(opened.status().message()), testing::HasSubstr(path));
}

}  // namespace
}  // namespace offshoot
