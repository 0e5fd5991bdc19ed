#include "worker/trainer_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/files.h"
#include "common/status_macros.h"
#include "worker/attempt_log.h"
#include "worker/descriptor.h"
#include "worker/inventory.h"

namespace offshoot::worker {
namespace {

constexpr int kOutputDescriptor = 1;
constexpr int kErrorDescriptor = 2;
constexpr int kEventsDescriptor = 3;
constexpr int kControlDescriptor = 4;
constexpr std::size_t kReadBytes = 64 << 10;
// Once a rank failed, the others can only wait for it: they get this long to end by themselves.
constexpr absl::Duration kSiblingGrace = absl::Seconds(3);

struct Pipe {
  Descriptor read_end;
  Descriptor write_end;
};

absl::StatusOr<Pipe> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "cannot make a pipe");
  return Pipe{Descriptor(ends[0]), Descriptor(ends[1])};
}

void SetNonBlocking(int descriptor) {
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
}

// One rank: its process and our ends of its pipes.
struct Rank {
  std::unique_ptr<ChildProcess> child;
  Descriptor events;
  Descriptor control;
  Descriptor output;
  LineSplitter event_lines{kMaxEventLineBytes};
  std::deque<std::string> control_lines;
  std::optional<ExitStatus> exit;
};

class RealTrainerProcess : public TrainerProcess {
 public:
  RealTrainerProcess(AttemptLog log, TrainerListener& listener)
      : log_(std::move(log)), listener_(listener), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  ~RealTrainerProcess() override {
    abandoned_ = true;
    Terminate(absl::ZeroDuration());
    if (pump_.joinable()) pump_.join();
  }

  absl::Status StartRank(ProcessSpawner& spawner, const TrainerCommand& command, int local_rank);
  void StartPump() {
    pump_ = std::thread([this] { Pump(); });
  }

  std::vector<ProcessIdentity> identities() const override {
    std::vector<ProcessIdentity> identities;
    for (const auto& rank : ranks_) identities.push_back(rank->child->identity());
    return identities;
  }

  void SendControl(const std::string& line) override {
    {
      absl::MutexLock lock(&mutex_);
      if (requested_lines_.size() >= kMaxPendingControlLines) return;
      requested_lines_.push_back(line + "\n");
    }
    Wake();
  }

  void Terminate(absl::Duration grace) override {
    {
      absl::MutexLock lock(&mutex_);
      terminate_requested_ = true;
      kill_time_ = std::min(kill_time_, absl::Now() + grace);
    }
    Wake();
  }

 private:
  void Wake() {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t wrote = write(wake_.get(), &one, sizeof(one));
  }

  void Pump();
  std::vector<pollfd> Descriptors() const;
  int PollTimeoutMs();
  void TakeRequests();
  void ReadEvents(int index);
  void ReadOutput(Rank& rank);
  void WriteControl(Rank& rank);
  void Reap();
  void HandleEventLine(int index, absl::string_view line, bool whole);
  void Log(absl::string_view text);
  bool AllEnded() const;

  AttemptLog log_;
  TrainerListener& listener_;
  const Descriptor wake_;
  std::vector<std::unique_ptr<Rank>> ranks_;  // fixed once the pump runs
  std::atomic<bool> abandoned_ = false;
  std::thread pump_;

  // Of the pump thread.
  const std::int64_t out_of_memory_kills_before_ = OutOfMemoryKills();
  TrainerExit exit_;
  bool term_sent_ = false;
  bool kill_sent_ = false;

  absl::Mutex mutex_;
  bool terminate_requested_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time kill_time_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  std::vector<std::string> requested_lines_ ABSL_GUARDED_BY(mutex_);
};

absl::Status RealTrainerProcess::StartRank(ProcessSpawner& spawner, const TrainerCommand& command,
                                           int local_rank) {
  const TrainerRank& wanted = command.ranks[static_cast<std::size_t>(local_rank)];
  auto rank = std::make_unique<Rank>();
  ASSIGN_OR_RETURN(Pipe output, MakePipe());
  SpawnOptions options;
  options.arguments.push_back(command.program);
  options.arguments.insert(options.arguments.end(), wanted.arguments.begin(),
                           wanted.arguments.end());
  options.environment = wanted.environment;
  options.descriptors = {{output.write_end.get(), kOutputDescriptor},
                         {output.write_end.get(), kErrorDescriptor}};
  Pipe events;
  Pipe control;
  if (command.protocol) {
    ASSIGN_OR_RETURN(events, MakePipe());
    ASSIGN_OR_RETURN(control, MakePipe());
    options.descriptors.emplace_back(events.write_end.get(), kEventsDescriptor);
    options.descriptors.emplace_back(control.read_end.get(), kControlDescriptor);
    options.arguments.insert(options.arguments.end(),
                             {"--events-fd", absl::StrCat(kEventsDescriptor), "--control-fd",
                              absl::StrCat(kControlDescriptor)});
    SetNonBlocking(events.read_end.get());
    SetNonBlocking(control.write_end.get());
  }
  SetNonBlocking(output.read_end.get());
  ASSIGN_OR_RETURN(rank->child, spawner.Spawn(options));
  rank->events = std::move(events.read_end);
  rank->control = std::move(control.write_end);
  rank->output = std::move(output.read_end);
  ranks_.push_back(std::move(rank));
  return absl::OkStatus();
}

bool RealTrainerProcess::AllEnded() const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [](const auto& rank) { return rank->exit.has_value(); });
}

// Order: wake, then per rank pidfd, events, output, control (-1 is skipped by poll).
std::vector<pollfd> RealTrainerProcess::Descriptors() const {
  std::vector<pollfd> descriptors = {{wake_.get(), POLLIN, 0}};
  for (const auto& rank : ranks_) {
    descriptors.push_back({rank->exit.has_value() ? -1 : rank->child->pidfd(), POLLIN, 0});
    descriptors.push_back({rank->events.get(), POLLIN, 0});
    descriptors.push_back({rank->output.get(), POLLIN, 0});
    descriptors.push_back({rank->control_lines.empty() ? -1 : rank->control.get(), POLLOUT, 0});
  }
  return descriptors;
}

int RealTrainerProcess::PollTimeoutMs() {
  absl::MutexLock lock(&mutex_);
  if (kill_sent_ || kill_time_ == absl::InfiniteFuture()) return -1;
  const absl::Duration left = std::max(absl::ZeroDuration(), kill_time_ - absl::Now());
  return static_cast<int>(std::min<std::int64_t>(absl::ToInt64Milliseconds(left) + 1, 60'000));
}

void RealTrainerProcess::TakeRequests() {
  std::uint64_t drained = 0;
  [[maybe_unused]] const ssize_t got = read(wake_.get(), &drained, sizeof(drained));
  bool send_term = false;
  bool send_kill = false;
  std::vector<std::string> lines;
  {
    absl::MutexLock lock(&mutex_);
    lines.swap(requested_lines_);
    send_kill = !kill_sent_ && kill_time_ <= absl::Now();
    send_term = terminate_requested_ && !term_sent_;
    exit_.terminated = exit_.terminated || terminate_requested_;
  }
  for (const auto& rank : ranks_) {
    if (rank->exit.has_value()) continue;
    if (send_term) rank->child->Signal(SIGTERM);
    if (send_kill) rank->child->Signal(SIGKILL);
    for (const std::string& line : lines) {
      if (rank->control.valid() && rank->control_lines.size() < kMaxPendingControlLines) {
        rank->control_lines.push_back(line);
      }
    }
  }
  term_sent_ = term_sent_ || send_term;
  kill_sent_ = kill_sent_ || send_kill;
}

void RealTrainerProcess::WriteControl(Rank& rank) {
  while (!rank.control_lines.empty() && rank.control.valid()) {
    std::string& line = rank.control_lines.front();
    const ssize_t wrote = write(rank.control.get(), line.data(), line.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0 && errno == EAGAIN) return;
    if (wrote < 0) {
      rank.control.Reset();  // it is ending and reads no more
      rank.control_lines.clear();
      return;
    }
    line.erase(0, static_cast<std::size_t>(wrote));
    if (line.empty()) rank.control_lines.pop_front();
  }
}

void RealTrainerProcess::Log(absl::string_view text) {
  const std::int64_t offset = log_.size_bytes();
  const absl::string_view taken = log_.Append(text);
  if (!taken.empty() && !abandoned_) listener_.OnTrainerLog(offset, taken);
}

void RealTrainerProcess::HandleEventLine(int index, absl::string_view line, bool whole) {
  if (absl::StripAsciiWhitespace(line).empty()) return;
  const absl::StatusOr<TrainerEvent> event =
      whole ? ParseTrainerEvent(line) : absl::InvalidArgumentError("the line is too long");
  if (event.ok()) {
    if (!abandoned_) listener_.OnTrainerEvent(index, *event);
    return;
  }
  constexpr std::size_t kShownBytes = 2000;
  Log(absl::StrCat("[rank ", index, " sent an event that is not understood (",
                   event.status().message(), "): ", line.substr(0, kShownBytes), "]\n"));
}

// At most this many reads in one round, so that no rank starves the others.
constexpr int kReadsPerRound = 16;

void RealTrainerProcess::ReadEvents(int index) {
  Rank& rank = *ranks_[static_cast<std::size_t>(index)];
  const auto handle = [this, index](absl::string_view line, bool whole) {
    HandleEventLine(index, line, whole);
  };
  char buffer[kReadBytes];
  for (int round = 0; round < kReadsPerRound && rank.events.valid(); ++round) {
    const ssize_t got = read(rank.events.get(), buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      rank.event_lines.Finish(handle);
      rank.events.Reset();
      return;
    }
    rank.event_lines.Add(absl::string_view(buffer, static_cast<std::size_t>(got)), handle);
  }
}

void RealTrainerProcess::ReadOutput(Rank& rank) {
  char buffer[kReadBytes];
  for (int round = 0; round < kReadsPerRound && rank.output.valid(); ++round) {
    const ssize_t got = read(rank.output.get(), buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      rank.output.Reset();
      return;
    }
    Log(absl::string_view(buffer, static_cast<std::size_t>(got)));
  }
}

// Notices ranks that ended; what is still in their pipes is read to the end. Something they left
// behind may hold the pipes open, so the end of a pipe is never waited for.
void RealTrainerProcess::Reap() {
  for (std::size_t index = 0; index < ranks_.size(); ++index) {
    Rank& rank = *ranks_[index];
    if (rank.exit.has_value()) continue;
    rank.exit = rank.child->TryWait();
    if (!rank.exit.has_value()) continue;
    constexpr int kMaxDrainRounds = 64;
    for (int round = 0; round < kMaxDrainRounds && rank.events.valid(); ++round) {
      ReadEvents(static_cast<int>(index));
    }
    ReadOutput(rank);
    rank.event_lines.Finish([this, index](absl::string_view line, bool whole) {
      HandleEventLine(static_cast<int>(index), line, whole);
    });
    rank.events.Reset();
    rank.output.Reset();
    rank.control.Reset();
    rank.control_lines.clear();
    constexpr int kStoppedCode = 3;
    const bool failed =
        rank.exit->signalled || (rank.exit->code != 0 && rank.exit->code != kStoppedCode);
    if (failed && exit_.first_failed_rank < 0 && !exit_.terminated) {
      exit_.first_failed_rank = static_cast<int>(index);
      if (ranks_.size() > 1) {
        absl::MutexLock lock(&mutex_);
        kill_time_ = std::min(kill_time_, absl::Now() + kSiblingGrace);
      }
    }
  }
}

void RealTrainerProcess::Pump() {
  while (!AllEnded()) {
    std::vector<pollfd> descriptors = Descriptors();
    poll(descriptors.data(), descriptors.size(), PollTimeoutMs());
    TakeRequests();
    for (std::size_t index = 0; index < ranks_.size(); ++index) {
      ReadEvents(static_cast<int>(index));
      ReadOutput(*ranks_[index]);
      WriteControl(*ranks_[index]);
    }
    Reap();
  }
  for (const auto& rank : ranks_) exit_.ranks.push_back(*rank->exit);
  exit_.out_of_memory_killed =
      out_of_memory_kills_before_ >= 0 && OutOfMemoryKills() > out_of_memory_kills_before_;
  exit_.log_tail = log_.Tail();
  if (!abandoned_) listener_.OnTrainerExited(exit_);
}

}  // namespace

RealTrainerLauncher::RealTrainerLauncher(ProcessSpawner& spawner) : spawner_(spawner) {
  signal(SIGPIPE, SIG_IGN);
}

absl::StatusOr<std::unique_ptr<TrainerProcess>> RealTrainerLauncher::Launch(
    const TrainerCommand& command, TrainerListener& listener) {
  ASSIGN_OR_RETURN(AttemptLog log,
                   AttemptLog::Open(command.log_path, kMaxLogFileBytes, kMaxLogTailBytes));
  auto process = std::make_unique<RealTrainerProcess>(std::move(log), listener);
  for (std::size_t rank = 0; rank < command.ranks.size(); ++rank) {
    // On failure the destructor ends the ranks that did start.
    RETURN_IF_ERROR(process->StartRank(spawner_, command, static_cast<int>(rank)));
  }
  process->StartPump();
  return process;
}

}  // namespace offshoot::worker
