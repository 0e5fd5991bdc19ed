// Carries out what an AttemptMachine asks for: files, network and processes of one attempt.
//
// Blocking work (fetching, launching, uploading) runs in order on one thread of its own; the
// trainer reports from its own thread; answers go to `post`, which must not block. Every task is
// answered exactly once, also when it is cancelled. Thread-safe; the destructor gives tasks up,
// ends the trainer and waits for both.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "offshoot/v1/cluster.pb.h"
#include "worker/artifact_client.h"
#include "worker/attempt_machine.h"
#include "worker/cancel_token.h"
#include "worker/hub_models.h"
#include "worker/model_cache.h"
#include "worker/run_journal.h"
#include "worker/trainer_process.h"

namespace offshoot::worker {

struct RunnerOptions {
  std::string trainer_program;
  std::string tokenised_directory;  // shared by attempts: tokenised data, keyed by digest
  std::string address;              // where ranks on other workers reach ours
  std::string mark_prefix;          // names this worker's state directory in process marks
  std::map<std::string, int> device_threads;                // device id -> threads of a trainer
  std::map<std::string, std::int64_t> device_memory_bytes;  // by device id
  int preflight_threads = 1;
  absl::Duration terminate_grace = absl::Seconds(3);
};

struct RunnerServices {
  RunJournal& journal;
  ModelCache& cache;
  HubModels& hub;
  ArtifactClient& artifacts;
  TrainerLauncher& launcher;
};

class AttemptRunner : private TrainerListener {
 public:
  using Post = std::function<void(AttemptInput)>;
  using PostLog = std::function<void(std::int64_t offset, std::string text)>;

  AttemptRunner(v1::Assignment assignment, AttemptKey key, const RunnerOptions& options,
                RunnerServices services, Post post, PostLog post_log);
  ~AttemptRunner() override;

  void Run(const AttemptAction& action);

  static std::string MarkOf(const RunnerOptions& options, const AttemptKey& key);

 private:
  struct Task {
    AttemptTask kind;
    std::function<absl::Status(CancelToken&)> work;
  };

  void Enqueue(AttemptTask kind, std::function<absl::Status(CancelToken&)> work);
  void RunTasks();
  void CancelAll();

  absl::Status Prepare(CancelToken& token);
  absl::Status PrepareInput(const v1::Input& input, CancelToken& token);
  absl::Status PrepareFiles(const std::string& pointer, const std::vector<v1::File>& files,
                            const std::string& shared_path, CancelToken& token);
  absl::Status LaunchTraining(const std::optional<MeetingPlace>& meet_at);
  absl::StatusOr<MeetingPlace> ChooseMeetingPlace() const;
  absl::Status LaunchVerification();
  absl::Status StartProcess(const TrainerCommand& command);
  absl::Status StoreCheckpoint(const CheckpointOnDisk& checkpoint, CancelToken& token);
  absl::Status StoreResult(const std::string& path, CancelToken& token);
  absl::Status Store(const StoreContribution& contribution, CancelToken& token);
  absl::Status Fetch(const FetchContribution& contribution, CancelToken& token);
  absl::StatusOr<std::vector<TrainerRank>> MakeRanks(const MeetingPlace& place) const;
  int world_size() const;
  bool spans_workers() const {
    return !preflight() && world_size() > assignment_.device_ids_size();
  }
  bool exchanges() const { return assignment_.exchange_artifacts() && spans_workers(); }
  bool preflight() const { return assignment_.kind() == v1::ASSIGNMENT_KIND_PREFLIGHT; }
  bool HasTask() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return ending_ || !tasks_.empty(); }

  void OnTrainerEvent(int rank, const TrainerEvent& event) override;
  void OnTrainerLog(std::int64_t offset, absl::string_view text) override;
  void OnTrainerExited(const TrainerExit& exit) override;

  const v1::Assignment assignment_;
  const AttemptKey key_;
  const RunnerOptions& options_;
  const RunnerServices services_;
  const Post post_;
  const PostLog post_log_;
  const std::string directory_;
  const std::string work_directory_;
  const std::string mark_;

  // Of the task thread.
  std::map<std::string, std::string> input_paths_;  // spec pointer -> local path
  std::vector<std::unique_ptr<ModelCache::Pin>> pins_;

  // Held while a process is launched and Launched is posted: its reports come after.
  absl::Mutex launch_gate_;

  absl::Mutex mutex_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<CancelToken> token_ ABSL_GUARDED_BY(mutex_);
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<TrainerProcess> process_ ABSL_GUARDED_BY(mutex_);
  std::thread task_thread_;
};

}  // namespace offshoot::worker
