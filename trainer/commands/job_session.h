// The frame of the commands that a worker starts: events and control lines, process guards, and the
// one boundary at which any exception becomes a `failed` event and an exit code.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "trainer/commands/arguments.h"
#include "trainer/events.h"

namespace offshoot::trainer {

// --events-fd and --control-fd.
std::vector<ArgumentSpec> WithSessionArguments(std::vector<ArgumentSpec> specs);

// Runs the body with both lines open. Its result is the exit code; what it throws (UsageError
// apart) is reported as a `failed` event, on stderr, and as kExitFailed.
int RunJobSession(const Arguments& arguments,
                  const std::function<int(EventWriter&, RunControl&)>& body);

}  // namespace offshoot::trainer
