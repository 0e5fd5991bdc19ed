// What every command shares: where it writes, and the options that each of them takes.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "cli/client.h"
#include "common/channel_security.h"

namespace google::protobuf {
class Message;
}

namespace offshoot::cli {

struct Streams {
  std::ostream& out;
  std::ostream& err;
  bool out_is_terminal = false;  // then progress is a line that is written over
};

class Context {
 public:
  explicit Context(Streams streams);

  // --coordinator, -o and --wait-ms, on a command of its own.
  void AddOutputOption(CLI::App* command);
  void AddClientOptions(CLI::App* command);
  // What the command does; run once parsing is over. Gives the exit code.
  void SetAction(CLI::App* command, std::function<int()> action);
  int RunAction() const { return action_ == nullptr ? 0 : action_(); }

  std::ostream& out() const { return streams_.out; }
  std::ostream& err() const { return streams_.err; }
  bool out_is_terminal() const { return streams_.out_is_terminal; }
  bool json() const { return output_ == "json"; }

  // Of the coordinator that the options name; made when it is first asked for.
  Client& client() const;
  absl::Duration wait() const { return absl::Milliseconds(wait_ms_); }

  // Prints "offshoot: <sentence>" and gives the exit code.
  int Fail(const absl::Status& status) const;
  // The message as the proto's JSON, over several lines or one.
  void PrintJson(const google::protobuf::Message& message) const;
  void PrintJsonLine(const google::protobuf::Message& message) const;

 private:
  Streams streams_;
  std::string coordinator_ = "127.0.0.1:7070";
  std::string output_ = "text";
  std::int64_t wait_ms_ = 10'000;
  ChannelSecurity security_;
  std::function<int()> action_;
  mutable std::unique_ptr<Client> client_;
};

// One per verb family; each in a file of its own.
void AddSubmitCommand(CLI::App& app, Context& context);
void AddJobCommands(CLI::App& app, Context& context);     // list status cancel pause resume
void AddStreamCommands(CLI::App& app, Context& context);  // watch logs metrics
void AddValidateCommand(CLI::App& app, Context& context);
void AddWorkerCommands(CLI::App& app, Context& context);
void AddModelCommands(CLI::App& app, Context& context);
void AddDerivativeCommands(CLI::App& app, Context& context);  // derivatives pull
void AddCaCommand(CLI::App& app, Context& context);
void AddRunCommand(CLI::App& app, Context& context);
void AddCompletionCommand(CLI::App& app, Context& context);

// The whole command line, program name left out. Writes to the context's streams only; gives the
// exit code.
int RunCli(const std::vector<std::string>& arguments, Context& context);

}  // namespace offshoot::cli
