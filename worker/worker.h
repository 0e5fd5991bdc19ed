// The worker's shell: one loop that feeds the agent (agent.h) and carries its effects out with real
// sessions, files and processes. Everything that happens elsewhere (a message, a trainer's event, a
// task's end) is posted to the loop's mailbox; nothing polls.
//
// State directory: lock, worker_id, digests, attempts/ (run_journal.h), cache/ (model_cache.h),
// tokenised/, speeds/ (calibration.h). Run is for one thread; Leave may come from any.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/files.h"
#include "worker/agent.h"
#include "worker/artifact_client.h"
#include "worker/attempt_runner.h"
#include "worker/calibration.h"
#include "worker/digest_cache.h"
#include "worker/hub_models.h"
#include "worker/model_cache.h"
#include "worker/run_journal.h"
#include "worker/session.h"
#include "worker/trainer_process.h"

namespace offshoot::worker {

struct WorkerOptions {
  std::string state_directory;
  std::string name;
  std::string address;  // where ranks on other workers reach ours; empty: not at all
  std::string trainer_program;
  v1::Inventory inventory;
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> taints;
  HubEnvironment hub = {};  // where base models with names come from
  std::int64_t cache_max_bytes = std::int64_t{64} << 30;
  std::int64_t tokenised_max_bytes = std::int64_t{4} << 30;
  absl::Duration unreachable_grace = absl::Minutes(10);
  absl::Duration leave_timeout = absl::Seconds(60);
  absl::Duration stop_timeout = absl::Minutes(5);
  absl::Duration progress_timeout = absl::Minutes(10);
  absl::Duration start_timeout = absl::Minutes(30);
  absl::Duration preflight_timeout = absl::Minutes(30);
  // How long nothing must be done before devices are measured; infinite: they never are.
  absl::Duration calibrate_after = absl::InfiniteDuration();
  // How long processes of an earlier worker process get to end by themselves.
  absl::Duration leftover_grace = absl::Seconds(5);
};

class Worker {
 public:
  // Takes the state directory (FAILED_PRECONDITION when another worker has it), ends what an
  // earlier process left running there and finds what it left undelivered.
  // launcher must outlive the worker.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(WorkerOptions options,
                                                        const CoordinatorChannels& channels,
                                                        TrainerLauncher& launcher);
  ~Worker();

  // Works until it has left: OK after Leave, else why the coordinator refused it.
  absl::Status Run();

  // Checkpoints and stops what runs, delivers, and lets Run end; bounded by leave_timeout.
  void Leave();

 private:
  Worker(WorkerOptions options, const CoordinatorChannels& channels, TrainerLauncher& launcher,
         FileLock lock);

  absl::Status Open();
  absl::Status Recover();
  // droppable: not when too much waits already.
  void Post(std::function<void()> work, bool droppable = false);
  void RunEffects(AgentEffects effects);
  void RunEffect(const Connect& effect);
  void RunEffect(const Disconnect& effect);
  void RunEffect(SendMessage& effect);
  void RunEffect(const BeginAttempt& effect);
  void RunEffect(const PersistEvent& effect);
  void RunEffect(const RecordAck& effect);
  void RunEffect(const RunAction& effect);
  void RunEffect(const ForgetAttempt& effect);
  void RunEffect(const LeaveNow& effect);
  void StartRunner(const AttemptKey& key, const v1::Assignment& assignment);
  void FeedAttempt(const AttemptKey& key, AttemptInput input);

  const WorkerOptions options_;
  const FileLock lock_;
  TrainerLauncher& launcher_;
  const RealClock clock_;
  RunnerOptions runner_options_;
  std::unique_ptr<RunJournal> journal_;
  DigestCache digests_;
  ArtifactClient artifacts_;
  std::unique_ptr<ModelCache> cache_;
  HubModels hub_;
  Calibration calibration_;
  GrpcSessionTransport transport_;
  std::vector<RecoveredAttempt> recovered_;

  absl::Mutex mutex_;
  std::deque<std::function<void()>> mailbox_ ABSL_GUARDED_BY(mutex_);

  // Of the loop.
  std::unique_ptr<Agent> agent_;
  std::map<AttemptKey, absl::Status> failed_begins_;
  std::map<AttemptKey, std::unique_ptr<AttemptRunner>> runners_;
  std::unique_ptr<Session> session_;
  std::uint64_t session_number_ = 0;
  std::uint64_t reconnects_ = 0;  // since the last welcome
  bool left_ = false;
  absl::Status left_reason_;
};

}  // namespace offshoot::worker
