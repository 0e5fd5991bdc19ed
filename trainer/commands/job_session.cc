#include "trainer/commands/job_session.h"

#include <cstdio>

#include "trainer/commands/commands.h"
#include "trainer/failure.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kMaxDescriptor = 1 << 20;
constexpr std::int64_t kFinalFlushMs = 10'000;

int Descriptor(const Arguments& arguments, const std::string& name) {
  return arguments.Has(name) ? static_cast<int>(arguments.Integer(name, 0, kMaxDescriptor)) : -1;
}

}  // namespace

std::vector<ArgumentSpec> WithSessionArguments(std::vector<ArgumentSpec> specs) {
  specs.push_back({"events-fd", "N", "descriptor that takes events as JSON lines"});
  specs.push_back({"control-fd", "N", "descriptor that gives commands as JSON lines"});
  return specs;
}

int RunJobSession(const Arguments& arguments,
                  const std::function<int(EventWriter&, RunControl&)>& body) {
  const int events_descriptor = Descriptor(arguments, "events-fd");
  const int control_descriptor = Descriptor(arguments, "control-fd");
  InstallProcessGuards(events_descriptor, control_descriptor);
  EventWriter events(events_descriptor);
  RunControl control(control_descriptor);
  int exit_code = kExitFailed;
  try {
    exit_code = body(events, control);
  } catch (const UsageError&) {
    throw;
  } catch (...) {
    const Failure failure = DescribeCurrentException();
    std::fprintf(stderr, "offshoot-trainer: %s: %s\n", ReasonCode(failure.reason),
                 failure.message.c_str());
    events.Emit("failed", {{"reason_code", ReasonCode(failure.reason)},
                           {"message", failure.message},
                           {"step", failure.step},
                           {"rows", failure.rows}});
  }
  events.Flush(kFinalFlushMs);
  return exit_code;
}

}  // namespace offshoot::trainer
