// What the services stand on; all of it outlives them.
#pragma once

#include <atomic>
#include <memory>

#include "absl/status/status.h"
#include "coordinator/artifacts.h"
#include "coordinator/controller.h"
#include "coordinator/hub/pusher.h"
#include "coordinator/identity.h"
#include "coordinator/inputs.h"
#include "coordinator/job_signals.h"
#include "coordinator/outputs.h"
#include "coordinator/store.h"
#include "coordinator/thread_pool.h"
#include "coordinator/worker_authority.h"

namespace offshoot {

inline constexpr int kMaxStreams = 16'384;  // watchers, downloads and uploads at a time
inline constexpr std::size_t kChunkBytes = 1 << 20;

// Calls by service, for the metrics page.
struct RpcCounters {
  std::atomic<std::int64_t> jobs{0};
  std::atomic<std::int64_t> models{0};
  std::atomic<std::int64_t> cluster{0};
  std::atomic<std::int64_t> streams_open{0};
};

struct ServiceContext {
  Controller& controller;
  Store& store;
  ArtifactDirectory& artifacts;
  AttemptOutputs& outputs;
  JobSignals& signals;
  const InputResolver& resolver;
  ThreadPool& pool;
  const Clock& clock;
  RpcCounters counters;
  const Pusher* pusher = nullptr;          // null: nothing is pushed
  const Identities* identities = nullptr;  // null: nobody is asked who it is
  WorkerAuthority* authority = nullptr;    // null: no worker joins by a token
};

// Who calls, if it may do this.
inline absl::StatusOr<Caller> Require(const ServiceContext& context,
                                      const grpc::CallbackServerContext& call, Right right) {
  if (context.identities == nullptr) return Caller();
  absl::StatusOr<Caller> caller = context.identities->Require(call, right);
  if (caller.ok() && !caller->worker_id.empty() && context.authority != nullptr) {
    const absl::Status member = context.authority->Check(caller->worker_id);
    if (!member.ok()) return member;
  }
  return caller;
}

}  // namespace offshoot
