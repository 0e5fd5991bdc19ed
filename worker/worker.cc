#include "worker/worker.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/digest.h"
#include "common/ids.h"
#include "common/random.h"
#include "common/status_macros.h"
#include "worker/checkpoint_files.h"
#include "worker/inventory.h"
#include "worker/leftovers.h"
#include "worker/membership.h"
#include "worker/prune.h"

namespace offshoot::worker {
namespace {

constexpr std::size_t kMaxMailbox = 10'000;

// Events of which the newest says all, or that files hold as well.
bool IsDroppable(const AttemptInput& input) {
  const auto* said = std::get_if<TrainerSaid>(&input);
  return said != nullptr && (std::holds_alternative<TrainerMetrics>(said->event) ||
                             std::holds_alternative<TrainerStage>(said->event) ||
                             std::holds_alternative<TrainerEval>(said->event) ||
                             std::holds_alternative<TrainerSample>(said->event));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Worker>> Worker::Create(WorkerOptions options,
                                                       const CoordinatorChannels& channels,
                                                       TrainerLauncher& launcher) {
  RETURN_IF_ERROR(MakeDirectories(options.state_directory));
  absl::StatusOr<FileLock> lock = FileLock::Acquire(JoinPath(options.state_directory, "lock"));
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("another worker uses the state directory ", options.state_directory,
                     "; stop it or give this one another --state-dir"));
  }
  RETURN_IF_ERROR(lock.status());
  std::unique_ptr<Worker> worker(
      new Worker(std::move(options), channels, launcher, *std::move(lock)));
  RETURN_IF_ERROR(worker->Open());
  return worker;
}

Worker::Worker(WorkerOptions options, const CoordinatorChannels& channels,
               TrainerLauncher& launcher, FileLock lock)
    : options_(std::move(options)),
      lock_(std::move(lock)),
      launcher_(launcher),
      digests_(JoinPath(options_.state_directory, "digests")),
      artifacts_(channels.artifacts),
      hub_(options_.hub, digests_),
      calibration_({JoinPath(options_.state_directory, "speeds"), options_.trainer_program,
                    options_.calibrate_after},
                   launcher, [this] { Post([] {}); }),
      transport_(channels.session) {}

Worker::~Worker() {
  calibration_.Stop();
  session_.reset();
  runners_.clear();
}

absl::Status Worker::Open() {
  const std::string& root = options_.state_directory;
  ASSIGN_OR_RETURN(journal_, RunJournal::Open(JoinPath(root, "attempts")));
  ASSIGN_OR_RETURN(
      cache_,
      ModelCache::Open(JoinPath(root, "cache"), options_.cache_max_bytes, digests_,
                       [this](const v1::File& file, const std::string& path, CancelToken& token) {
                         return artifacts_.Download(file, path, token);
                       }));
  AgentOptions agent;
  ASSIGN_OR_RETURN(agent.worker_id, ReadOrMakeWorkerId(JoinPath(root, "worker_id")));
  agent.incarnation_id = MakeRandomId("inc-");
  agent.name = options_.name;
  agent.version = OFFSHOOT_VERSION;
  agent.address = options_.address;
  agent.inventory = options_.inventory;
  RETURN_IF_ERROR(MakeDirectories(JoinPath(root, "speeds")));
  calibration_.FillKnown(agent.inventory);
  agent.labels = options_.labels;
  agent.taints = options_.taints;
  agent.unreachable_grace = options_.unreachable_grace;
  agent.leave_timeout = options_.leave_timeout;
  agent.limits.stop_timeout = options_.stop_timeout;
  agent.limits.progress_timeout = options_.progress_timeout;
  agent.limits.start_timeout = options_.start_timeout;
  agent.limits.preflight_timeout = options_.preflight_timeout;

  runner_options_.trainer_program = options_.trainer_program;
  runner_options_.tokenised_directory = JoinPath(root, "tokenised");
  runner_options_.address = options_.address;
  runner_options_.mark_prefix = agent.worker_id;
  runner_options_.preflight_threads = std::max(1, options_.inventory.cpu_cores());
  for (const v1::Device& device : options_.inventory.devices()) {
    runner_options_.device_threads[device.device_id()] = std::max(1, device.threads());
    runner_options_.device_memory_bytes[device.device_id()] = device.memory_bytes();
  }
  RETURN_IF_ERROR(MakeDirectories(runner_options_.tokenised_directory));
  PruneDirectory(runner_options_.tokenised_directory, options_.tokenised_max_bytes);
  agent_ = std::make_unique<Agent>(std::move(agent), &RandomUnit);
  return Recover();
}

absl::Status Worker::Recover() {
  ASSIGN_OR_RETURN(std::vector<RunJournal::Entry> entries, journal_->Load());
  std::vector<std::thread> endings;
  for (RunJournal::Entry& entry : entries) {
    RecoveredAttempt& attempt = entry.attempt;
    const AttemptKey key{JobId(attempt.assignment.job_id()),
                         AttemptNumber{attempt.assignment.attempt()}};
    endings.emplace_back([this, key, &entry] {
      const int ended = EndLeftovers(AttemptRunner::MarkOf(runner_options_, key), entry.processes,
                                     options_.leftover_grace);
      if (ended > 0) {
        spdlog::info("{}: ended {} processes that an earlier worker process left", ToString(key),
                     ended);
      }
      // Only now does nobody write there any more.
      entry.attempt.newest_checkpoint = FindNewestCheckpoint(journal_->WorkDirectory(key));
      entry.attempt.last_step = FindLastTrainedStep(journal_->WorkDirectory(key));
    });
  }
  for (std::thread& ending : endings) ending.join();
  for (RunJournal::Entry& entry : entries) recovered_.push_back(std::move(entry.attempt));
  return absl::OkStatus();
}

absl::Status Worker::Run() {
  for (const RecoveredAttempt& attempt : recovered_) {
    const AttemptKey key{JobId(attempt.assignment.job_id()),
                         AttemptNumber{attempt.assignment.attempt()}};
    spdlog::info("{}: of an earlier worker process; delivering what it left", ToString(key));
    StartRunner(key, attempt.assignment);
  }
  agent_->SetFreeDiskBytes(FreeDiskBytes(options_.state_directory));
  RunEffects(agent_->Start(recovered_, clock_.Now()));
  recovered_.clear();
  while (!left_) {
    const absl::Time deadline = std::min(agent_->deadline(), calibration_.deadline());
    std::deque<std::function<void()>> work;
    {
      absl::MutexLock lock(&mutex_);
      const auto has_mail = [this] {
        mutex_.AssertReaderHeld();
        return !mailbox_.empty();
      };
      mutex_.AwaitWithDeadline(absl::Condition(&has_mail), deadline);
      work.swap(mailbox_);
    }
    for (const std::function<void()>& item : work) {
      if (!left_) item();
    }
    const absl::Time now = clock_.Now();
    if (!left_ && now >= agent_->deadline()) {
      agent_->SetFreeDiskBytes(FreeDiskBytes(options_.state_directory));
      RunEffects(agent_->OnTick(now));
    }
    for (const auto& [device_id, speed] : calibration_.OnTick(!runners_.empty(), now)) {
      agent_->SetDeviceSpeed(device_id, speed);
    }
  }
  session_.reset();
  runners_.clear();
  return left_reason_;
}

void Worker::Leave() {
  Post([this] {
    spdlog::info("leaving: attempts that run are checkpointed and stopped");
    RunEffects(agent_->Leave(clock_.Now()));
  });
}

void Worker::Post(std::function<void()> work, bool droppable) {
  absl::MutexLock lock(&mutex_);
  if (droppable && mailbox_.size() >= kMaxMailbox) return;
  mailbox_.push_back(std::move(work));
}

void Worker::RunEffects(AgentEffects effects) {
  for (AgentEffect& effect : effects) {
    std::visit([this](auto& value) { RunEffect(value); }, effect);
  }
}

void Worker::RunEffect(const Connect&) {
  const std::uint64_t number = ++session_number_;
  session_.reset();
  SessionHandlers handlers;
  handlers.on_message = [this, number](v1::CoordinatorMessage message) {
    Post([this, number, message = std::move(message)] {
      if (number != session_number_) return;
      if (message.has_welcome()) {
        spdlog::info("welcomed by coordinator {}", message.welcome().coordinator_id());
        reconnects_ = 0;
      }
      RunEffects(agent_->OnMessage(message, clock_.Now()));
    });
  };
  handlers.on_closed = [this, number](absl::Status status) {
    Post([this, number, status = std::move(status)] {
      if (number != session_number_) return;
      // A coordinator that stays away is told of ever more rarely.
      ++reconnects_;
      if ((reconnects_ & (reconnects_ - 1)) == 0) {
        spdlog::warn("no session with the coordinator, trying again: {}",
                     std::string(status.message()));
      }
      RunEffects(agent_->OnDisconnected(status, clock_.Now()));
    });
  };
  session_ = transport_.Open(std::move(handlers));
}

void Worker::RunEffect(const Disconnect&) {
  if (session_ != nullptr) session_->Close();
}

void Worker::RunEffect(SendMessage& effect) {
  if (session_ != nullptr) session_->Send(std::move(effect.message));
}

void Worker::StartRunner(const AttemptKey& key, const v1::Assignment& assignment) {
  runners_[key] = std::make_unique<AttemptRunner>(
      assignment, key, runner_options_,
      RunnerServices{*journal_, *cache_, hub_, artifacts_, launcher_},
      [this, key](AttemptInput input) { FeedAttempt(key, std::move(input)); },
      [this, key](std::int64_t offset, std::string text) {
        Post(
            [this, key, offset, text = std::move(text)] {
              RunEffects(agent_->OnLog(key, offset, text, clock_.Now()));
            },
            /*droppable=*/true);
      });
}

void Worker::FeedAttempt(const AttemptKey& key, AttemptInput input) {
  const bool droppable = IsDroppable(input);
  Post([this, key,
        input = std::move(input)] { RunEffects(agent_->OnAttempt(key, input, clock_.Now())); },
       droppable);
}

void Worker::RunEffect(const BeginAttempt& effect) {
  spdlog::info("{}: assigned", ToString(effect.key));
  const absl::Status status = journal_->Begin(effect.key, effect.assignment);
  if (!status.ok()) failed_begins_[effect.key] = status;
  StartRunner(effect.key, effect.assignment);
}

void Worker::RunEffect(const PersistEvent& effect) {
  const v1::AttemptEvent& event = effect.event;
  if (event.has_ended()) {
    spdlog::info("{}: ended: {}: {}", ToString(effect.key), event.ended().reason_code(),
                 event.ended().message());
  }
  const absl::Status status = journal_->AppendEvent(effect.key, event);
  // It is still in memory, and sent; only a crash before its acknowledgement would lose it.
  if (!status.ok()) {
    spdlog::error("{}: event {} is not on disk: {}", ToString(effect.key), event.sequence(),
                  std::string(status.message()));
  }
}

void Worker::RunEffect(const RecordAck& effect) {
  journal_->RecordAck(effect.key, effect.sequence).IgnoreError();  // else the event is repeated
}

void Worker::RunEffect(const RunAction& effect) {
  const auto failed = failed_begins_.find(effect.key);
  if (failed != failed_begins_.end() && std::holds_alternative<PrepareInputs>(effect.action)) {
    FeedAttempt(effect.key, TaskFailed{AttemptTask::kPrepareInputs, failed->second});
    return;
  }
  const auto runner = runners_.find(effect.key);
  if (runner != runners_.end()) runner->second->Run(effect.action);
}

void Worker::RunEffect(const ForgetAttempt& effect) {
  failed_begins_.erase(effect.key);
  runners_.erase(effect.key);
  const absl::Status status = journal_->Remove(effect.key);
  if (!status.ok()) {
    spdlog::error("{}: {}", ToString(effect.key), std::string(status.message()));
  }
  PruneDirectory(runner_options_.tokenised_directory, options_.tokenised_max_bytes);
}

void Worker::RunEffect(const LeaveNow& effect) {
  left_ = true;
  left_reason_ = effect.reason;
}

}  // namespace offshoot::worker
