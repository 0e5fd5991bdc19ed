#include "worker/attempt_runner.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/checkpoint_files.h"
#include "worker/descriptor.h"
#include "worker/leftovers.h"
#include "worker/trainer_spec_file.h"

namespace offshoot::worker {
namespace {

template <class... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <class... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

constexpr char kResumePointer[] = "/resume_from";

// A TCP port that is free now, for the ranks to meet at.
absl::StatusOr<int> FindFreePort(bool loopback) {
  const Descriptor socket_descriptor(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY);
  socklen_t length = sizeof(address);
  if (!socket_descriptor.valid() ||
      bind(socket_descriptor.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      getsockname(socket_descriptor.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus(errno, "cannot find a free port for the ranks");
  }
  return ntohs(address.sin_port);
}

}  // namespace

AttemptRunner::AttemptRunner(v1::Assignment assignment, AttemptKey key,
                             const RunnerOptions& options, RunnerServices services, Post post,
                             PostLog post_log)
    : assignment_(std::move(assignment)),
      key_(std::move(key)),
      options_(options),
      services_(services),
      post_(std::move(post)),
      post_log_(std::move(post_log)),
      directory_(services_.journal.Directory(key_)),
      work_directory_(services_.journal.WorkDirectory(key_)),
      mark_(MarkOf(options_, key_)),
      token_(std::make_shared<CancelToken>()),
      task_thread_([this] { RunTasks(); }) {}

AttemptRunner::~AttemptRunner() {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  CancelAll();
  task_thread_.join();
  std::shared_ptr<TrainerProcess> process;
  {
    absl::MutexLock lock(&mutex_);
    process.swap(process_);
  }
  process.reset();
}

std::string AttemptRunner::MarkOf(const RunnerOptions& options, const AttemptKey& key) {
  return absl::StrCat(options.mark_prefix, "/", ToString(key));
}

void AttemptRunner::Run(const AttemptAction& action) {
  std::shared_ptr<TrainerProcess> process;
  {
    absl::MutexLock lock(&mutex_);
    process = process_;
  }
  std::visit(
      Overloaded{
          [this](const PrepareInputs&) {
            Enqueue(AttemptTask::kPrepareInputs,
                    [this](CancelToken& token) { return Prepare(token); });
          },
          [this](const LaunchTrainer& launch) {
            Enqueue(AttemptTask::kLaunch, [this, meet_at = launch.meet_at](CancelToken&) {
              return LaunchTraining(meet_at);
            });
          },
          [this](const LaunchVerify&) {
            Enqueue(AttemptTask::kLaunch, [this](CancelToken&) { return LaunchVerification(); });
          },
          [this](const UploadCheckpoint& upload) {
            Enqueue(AttemptTask::kUploadCheckpoint, [this, upload](CancelToken& token) {
              return StoreCheckpoint({upload.step, upload.path}, token);
            });
          },
          [this](const UploadResult& upload) {
            Enqueue(AttemptTask::kUploadResult,
                    [this, upload](CancelToken& token) { return StoreResult(upload.path, token); });
          },
          [this](const StoreContribution& contribution) {
            Enqueue(AttemptTask::kExchange, [this, contribution](CancelToken& token) {
              return Store(contribution, token);
            });
          },
          [this](const FetchContribution& contribution) {
            Enqueue(AttemptTask::kExchange, [this, contribution](CancelToken& token) {
              return Fetch(contribution, token);
            });
          },
          [&process](const SendControl& control) {
            if (process != nullptr) process->SendControl(control.line);
          },
          [this, &process](const TerminateTrainer&) {
            if (process != nullptr) process->Terminate(options_.terminate_grace);
          },
          [this](const CancelTasks&) { CancelAll(); },
          // The agent keeps these to itself.
          [](const EmitEvent&) {},
          [](const SendOutput&) {},
          [](const SendContribution&) {},
          [](const Forget&) {},
      },
      action);
}

void AttemptRunner::Enqueue(AttemptTask kind, std::function<absl::Status(CancelToken&)> work) {
  absl::MutexLock lock(&mutex_);
  tasks_.push_back({kind, std::move(work)});
}

// Tasks that run or wait now are given up; later ones are not.
void AttemptRunner::CancelAll() {
  std::shared_ptr<CancelToken> token = std::make_shared<CancelToken>();
  std::deque<Task> dropped;
  {
    absl::MutexLock lock(&mutex_);
    token.swap(token_);
    dropped.swap(tasks_);
  }
  token->Cancel();
  for (const Task& task : dropped) {
    post_(TaskFailed{task.kind, absl::CancelledError("given up by request")});
  }
}

void AttemptRunner::RunTasks() {
  while (true) {
    Task task;
    std::shared_ptr<CancelToken> token;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &AttemptRunner::HasTask));
      if (ending_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      token = token_;
    }
    const absl::Status status = task.work(*token);
    if (!status.ok()) post_(TaskFailed{task.kind, status});
  }
}

absl::Status AttemptRunner::PrepareFiles(const std::string& pointer,
                                         const std::vector<v1::File>& files,
                                         const std::string& shared_path, CancelToken& token) {
  ASSIGN_OR_RETURN(ModelCache::Prepared prepared,
                   services_.cache.Prepare(files, shared_path, token));
  input_paths_[pointer] = std::move(prepared.path);
  pins_.push_back(std::move(prepared.pin));
  return absl::OkStatus();
}

// The path that the coordinator knows, if it is seen here; else the hub's cache and the hub; last
// the coordinator's own stream, for a worker that reaches no hub.
absl::Status AttemptRunner::PrepareInput(const v1::Input& input, CancelToken& token) {
  const std::vector<v1::File> files(input.files().begin(), input.files().end());
  const std::string& shared_path = input.shared_path();
  if (input.hub_repository().empty() || (!shared_path.empty() && PathExists(shared_path))) {
    return PrepareFiles(input.spec_pointer(), files, shared_path, token);
  }
  const absl::StatusOr<std::string> snapshot = services_.hub.Fetch(
      input, token, [this](const std::string& stage) { post_(Preparing{stage}); });
  if (absl::IsCancelled(snapshot.status()) || absl::IsResourceExhausted(snapshot.status())) {
    return snapshot.status();
  }
  const absl::Status status =
      PrepareFiles(input.spec_pointer(), files, snapshot.ok() ? *snapshot : "", token);
  // Nobody has it: then what the hub said is what helps.
  if (absl::IsNotFound(status) && !snapshot.ok()) {
    return absl::NotFoundError(snapshot.status().message());
  }
  return status;
}

absl::Status AttemptRunner::Prepare(CancelToken& token) {
  for (const v1::Input& input : assignment_.inputs()) {
    RETURN_IF_ERROR(PrepareInput(input, token));
  }
  if (assignment_.has_resume_from() && assignment_.resume_from().files_size() > 0) {
    const auto& files = assignment_.resume_from().files();
    RETURN_IF_ERROR(PrepareFiles(kResumePointer, {files.begin(), files.end()}, "", token));
  }
  post_(InputsReady{});
  return absl::OkStatus();
}

int AttemptRunner::world_size() const {
  if (preflight()) return 1;
  return std::max(assignment_.world_size(), assignment_.device_ids_size());
}

absl::StatusOr<MeetingPlace> AttemptRunner::ChooseMeetingPlace() const {
  if (world_size() == 1 || exchanges()) return MeetingPlace{};
  if (spans_workers() && options_.address.empty()) {
    return absl::FailedPreconditionError(
        "this worker was given a part of a gang over several workers, but no other worker can "
        "reach "
        "it; set its `address`");
  }
  ASSIGN_OR_RETURN(const int port, FindFreePort(/*loopback=*/!spans_workers()));
  return MeetingPlace{spans_workers() ? options_.address : "127.0.0.1", port};
}

absl::StatusOr<std::vector<TrainerRank>> AttemptRunner::MakeRanks(const MeetingPlace& place) const {
  LocalSpec local;
  local.paths = input_paths_;
  if (const auto resume = local.paths.find(kResumePointer); resume != local.paths.end()) {
    local.resume_from = resume->second;
    local.paths.erase(resume);
  }
  std::vector<std::string> devices(assignment_.device_ids().begin(),
                                   assignment_.device_ids().end());
  if (preflight()) devices = {""};
  if (devices.empty()) {
    return absl::InvalidArgumentError("the assignment names no device to train on");
  }
  std::vector<TrainerRank> ranks;
  for (std::size_t index = 0; index < devices.size(); ++index) {
    const auto threads = options_.device_threads.find(devices[index]);
    if (!preflight() && threads == options_.device_threads.end()) {
      return absl::InvalidArgumentError(absl::StrCat("the assignment asks for the device ",
                                                     devices[index],
                                                     ", which this worker does not offer"));
    }
    local.device = devices[index].rfind("cuda:", 0) == 0 ? devices[index] : "cpu";
    const auto memory = options_.device_memory_bytes.find(devices[index]);
    local.memory_bytes = memory == options_.device_memory_bytes.end() ? 0 : memory->second;
    local.threads = preflight() ? options_.preflight_threads : threads->second;
    ASSIGN_OR_RETURN(const std::string spec, LocaliseSpec(assignment_.trainer_spec_json(), local));
    const std::string spec_path = absl::StrCat(directory_, "/spec.", index, ".json");
    RETURN_IF_ERROR(WriteFileUnsynced(spec_path, spec));
    TrainerRank rank;
    rank.arguments = {preflight() ? "preflight" : "train", "--spec", spec_path, "--work-dir",
                      work_directory_};
    rank.environment = {{kAttemptMark, mark_},
                        {"OMP_NUM_THREADS", absl::StrCat(local.threads)},
                        // A spinning thread keeps a shared core from the one it waits for.
                        {"OMP_WAIT_POLICY", "passive"},
                        {"RANK", absl::StrCat(assignment_.first_rank() + static_cast<int>(index))},
                        {"LOCAL_RANK", absl::StrCat(index)},
                        {"WORLD_SIZE", absl::StrCat(world_size())}};
    if (assignment_.has_job_created_time()) {
      rank.environment.emplace_back("SOURCE_DATE_EPOCH",
                                    absl::StrCat(assignment_.job_created_time().seconds()));
    }
    if (exchanges()) rank.environment.emplace_back("OFFSHOOT_EXCHANGE", "worker");
    if (place.port != 0) {
      rank.environment.emplace_back("MASTER_ADDR", place.address);
      rank.environment.emplace_back("MASTER_PORT", absl::StrCat(place.port));
      rank.environment.emplace_back("OFFSHOOT_RANK_ADDRESS",
                                    spans_workers() ? options_.address : "127.0.0.1");
    }
    ranks.push_back(std::move(rank));
  }
  return ranks;
}

absl::Status AttemptRunner::LaunchTraining(const std::optional<MeetingPlace>& meet_at) {
  // Tokenised data is keyed by digest: what preflight made, training uses.
  std::error_code error;
  std::filesystem::create_directory_symlink(options_.tokenised_directory,
                                            JoinPath(work_directory_, "cache"), error);
  TrainerCommand command;
  command.program = options_.trainer_program;
  command.log_path = JoinPath(directory_, "trainer.log");
  MeetingPlace place;
  if (meet_at.has_value()) {
    place = *meet_at;
  } else {
    ASSIGN_OR_RETURN(place, ChooseMeetingPlace());
  }
  ASSIGN_OR_RETURN(command.ranks, MakeRanks(place));
  RETURN_IF_ERROR(StartProcess(command));
  if (!meet_at.has_value() && spans_workers() && !exchanges()) post_(Listening{place});
  return absl::OkStatus();
}

absl::Status AttemptRunner::LaunchVerification() {
  int threads = 1;
  for (const std::string& device : assignment_.device_ids()) {
    const auto found = options_.device_threads.find(device);
    if (found != options_.device_threads.end()) threads = std::max(threads, found->second);
  }
  TrainerRank rank;
  rank.arguments = {"verify", "--result", JoinPath(work_directory_, "result"), "--base",
                    input_paths_["/base_model/path"]};
  rank.environment = {{kAttemptMark, mark_},
                      {"OMP_NUM_THREADS", absl::StrCat(threads)},
                      {"OMP_WAIT_POLICY", "passive"}};
  TrainerCommand command;
  command.program = options_.trainer_program;
  command.log_path = JoinPath(directory_, "trainer.log");
  command.ranks = {std::move(rank)};
  command.protocol = false;
  return StartProcess(command);
}

absl::Status AttemptRunner::StartProcess(const TrainerCommand& command) {
  absl::MutexLock gate(&launch_gate_);
  ASSIGN_OR_RETURN(std::shared_ptr<TrainerProcess> process,
                   services_.launcher.Launch(command, *this));
  // A leftover is also found by its mark: a journal that cannot be written is no reason to stop.
  services_.journal.RecordProcesses(key_, process->identities()).IgnoreError();
  {
    absl::MutexLock lock(&mutex_);
    process.swap(process_);
  }
  post_(Launched{});
  return absl::OkStatus();
}

absl::Status AttemptRunner::StoreCheckpoint(const CheckpointOnDisk& checkpoint,
                                            CancelToken& token) {
  ASSIGN_OR_RETURN(const v1::Checkpoint stored,
                   ReadCheckpoint(checkpoint, work_directory_, assignment_.attempt()));
  for (const v1::File& file : stored.files()) {
    const std::string source = JoinPath(checkpoint.path, file.path());
    RETURN_IF_ERROR(services_.artifacts.Upload(file, source, key_, token));
    services_.cache.Adopt(source, file);
  }
  post_(CheckpointUploaded{stored});
  return absl::OkStatus();
}

absl::Status AttemptRunner::StoreResult(const std::string& path, CancelToken& token) {
  if (!PathIsInside(path, work_directory_)) {
    return absl::InternalError(
        absl::StrCat("the trainer named a result outside its work directory: ", path));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFilesBelow(path));
  ResultUploaded uploaded;
  for (const std::string& name : names) {
    const std::string source = JoinPath(path, name);
    v1::File file;
    file.set_path(name);
    ASSIGN_OR_RETURN(*file.mutable_digest(), DigestOfFile(source, token));
    std::error_code error;
    file.set_size_bytes(static_cast<std::int64_t>(std::filesystem::file_size(source, error)));
    RETURN_IF_ERROR(services_.artifacts.Upload(file, source, key_, token));
    uploaded.files.push_back(std::move(file));
  }
  if (uploaded.files.empty()) {
    return absl::InternalError(absl::StrCat("the trainer left no file in ", path));
  }
  post_(std::move(uploaded));
  return absl::OkStatus();
}

absl::Status AttemptRunner::Store(const StoreContribution& contribution, CancelToken& token) {
  if (!PathIsInside(contribution.path, work_directory_)) {
    return absl::InternalError(absl::StrCat(
        "the trainer named a contribution outside its work directory: ", contribution.path));
  }
  v1::File file;
  ASSIGN_OR_RETURN(*file.mutable_digest(), DigestOfFile(contribution.path, token));
  std::error_code error;
  file.set_size_bytes(
      static_cast<std::int64_t>(std::filesystem::file_size(contribution.path, error)));
  RETURN_IF_ERROR(services_.artifacts.Upload(file, contribution.path, key_, token));
  post_(ContributionStored{contribution.rank, contribution.round, file, contribution.path});
  return absl::OkStatus();
}

// The trainers here remove it.
absl::Status AttemptRunner::Fetch(const FetchContribution& contribution, CancelToken& token) {
  const std::string directory = JoinPath(work_directory_, "exchange");
  RETURN_IF_ERROR(MakeDirectories(directory));
  const std::string path = JoinPath(
      directory, absl::StrCat("fetched-", contribution.rank, ".round-", contribution.round));
  RETURN_IF_ERROR(services_.artifacts.Download(contribution.file, path, token));
  post_(ContributionFetched{contribution.rank, contribution.round, path});
  return absl::OkStatus();
}

void AttemptRunner::OnTrainerEvent(int rank, const TrainerEvent& event) {
  absl::MutexLock gate(&launch_gate_);
  post_(TrainerSaid{rank, event});
}

void AttemptRunner::OnTrainerLog(std::int64_t offset, absl::string_view text) {
  absl::MutexLock gate(&launch_gate_);
  post_log_(offset, std::string(text));
}

void AttemptRunner::OnTrainerExited(const TrainerExit& exit) {
  absl::MutexLock gate(&launch_gate_);
  // Whatever it started goes with it.
  EndLeftovers(mark_, {}, absl::ZeroDuration());
  post_(TrainerEnded{exit, FindNewestCheckpoint(work_directory_)});
}

}  // namespace offshoot::worker
