// Finds and ends processes that an attempt left behind, wherever they went: by a mark in their
// environment, which children inherit and keep even in another process group or session.
// Thread-safe; no state.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/process.h"

namespace offshoot::worker {

// The environment variable that every process of an attempt carries.
inline constexpr char kAttemptMark[] = "OFFSHOOT_ATTEMPT_MARK";

// Running processes of this user with NAME=value among the variables they were started with.
std::vector<pid_t> FindMarkedProcesses(const std::string& mark);

// SIGTERM to them and to the groups of processes (only those that still are who they were), then
// SIGKILL to whoever is left after grace. Waits for their end; grace zero kills at once.
// Returns how many were found.
int EndLeftovers(const std::string& mark, const std::vector<ProcessIdentity>& processes,
                 absl::Duration grace);

}  // namespace offshoot::worker
