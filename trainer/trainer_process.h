// Starts offshoot-trainer as a worker would, for tests: events and control over pipes, its own
// process group, limits. One thread.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace offshoot::trainer {

struct TrainerOptions {
  std::vector<std::string> arguments;  // after the program's name
  std::vector<std::pair<std::string, std::string>> environment;
  std::string log_path;  // stdout and stderr
  rlim_t file_size_limit = RLIM_INFINITY;
  rlim_t address_space_limit = RLIM_INFINITY;
  bool events = true;   // pass --events-fd
  bool control = true;  // pass --control-fd
};

class TrainerProcess {
 public:
  explicit TrainerProcess(const TrainerOptions& options) {
    int events[2];
    int control[2];
    EXPECT_EQ(pipe2(events, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(control, O_CLOEXEC), 0);
    std::vector<std::string> words = {OFFSHOOT_TRAINER_PROGRAM};
    words.insert(words.end(), options.arguments.begin(), options.arguments.end());
    if (options.events) {
      words.push_back("--events-fd=3");
    }
    if (options.control) {
      words.push_back("--control-fd=4");
    }
    std::vector<char*> pointers;
    for (std::string& word : words) {
      pointers.push_back(word.data());
    }
    pointers.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      setpgid(0, 0);
      for (const auto& [name, value] : options.environment) {
        setenv(name.c_str(), value.c_str(), 1);
      }
      const struct rlimit size = {options.file_size_limit, options.file_size_limit};
      setrlimit(RLIMIT_FSIZE, &size);
      const struct rlimit space = {options.address_space_limit, options.address_space_limit};
      setrlimit(RLIMIT_AS, &space);
      const int log = open(options.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
      // High first: the pipes' own numbers may be the ones wanted.
      const int events_end = fcntl(events[1], F_DUPFD, 10);
      const int control_end = fcntl(control[0], F_DUPFD, 10);
      dup2(log, 1);
      dup2(log, 2);
      dup2(events_end, 3);
      dup2(control_end, 4);
      close(events_end);
      close(control_end);
      execv(pointers[0], pointers.data());
      _exit(127);
    }
    close(events[1]);
    close(control[0]);
    events_ = events[0];
    control_ = control[1];
  }

  ~TrainerProcess() {
    if (!exit_code_) {
      Signal(SIGKILL);
      Wait();
    }
    CloseControl();
    close(events_);
  }
  TrainerProcess(const TrainerProcess&) = delete;
  TrainerProcess& operator=(const TrainerProcess&) = delete;

  // The next event; nothing at the end or when none came for 60 s.
  std::optional<nlohmann::json> NextEvent() {
    while (true) {
      if (const std::size_t end = pending_.find('\n'); end != std::string::npos) {
        nlohmann::json event = nlohmann::json::parse(pending_.substr(0, end));
        pending_.erase(0, end + 1);
        return event;
      }
      struct pollfd ready = {events_, POLLIN, 0};
      if (poll(&ready, 1, 60'000) <= 0) {
        ADD_FAILURE() << "no event for 60 s";
        return std::nullopt;
      }
      char buffer[4096];
      const ssize_t count = read(events_, buffer, sizeof(buffer));
      if (count <= 0) {
        return std::nullopt;
      }
      pending_.append(buffer, static_cast<std::size_t>(count));
    }
  }

  // Reads until an event of this name; null if it does not come.
  nlohmann::json WaitFor(const std::string& name) {
    while (std::optional<nlohmann::json> event = NextEvent()) {
      if (event->at("event") == name) {
        return *event;
      }
    }
    return nullptr;
  }

  std::vector<nlohmann::json> RemainingEvents() {
    std::vector<nlohmann::json> events;
    while (std::optional<nlohmann::json> event = NextEvent()) {
      events.push_back(std::move(*event));
    }
    return events;
  }

  void Send(const nlohmann::json& command) {
    const std::string line = command.dump() + "\n";
    // Gone already is fine: the test will see how it ended.
    if (write(control_, line.data(), line.size()) < 0) {
      EXPECT_EQ(errno, EPIPE);
    }
  }
  void CloseControl() {
    if (control_ >= 0) {
      close(control_);
    }
    control_ = -1;
  }
  void Signal(int number) { kill(-pid_, number); }

  // The exit code, or minus the signal that ended it.
  int Wait() {
    if (!exit_code_) {
      int status = 0;
      struct rusage usage = {};
      while (wait4(pid_, &status, 0, &usage) < 0 && errno == EINTR) {
      }
      peak_bytes_ = static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    return *exit_code_;
  }

  // The most it ever had resident, once it was waited for.
  std::int64_t peak_bytes() const { return peak_bytes_; }

 private:
  pid_t pid_ = -1;
  int events_ = -1;
  int control_ = -1;
  std::string pending_;
  std::optional<int> exit_code_;
  std::int64_t peak_bytes_ = 0;
};

}  // namespace offshoot::trainer
