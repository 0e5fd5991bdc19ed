// What the ranks of one job do together. A rank owns one Collective; with one rank it is a no-op,
// so the training loop is written once.
//
// Calls block and must come in the same order on every rank. Not thread-safe. A lost or slow peer
// ends every call with Error(kRankLost) that names this rank.
//
//   OpenRendezvous (early: rank 0 listens, so that the others can be told where)
//        └─ Join (when this rank is ready to train) ─▶ Collective
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace offshoot::trainer {

// torchrun's convention.
struct RankEnvironment {
  std::int64_t rank = 0;
  std::int64_t world_size = 1;
  std::int64_t local_rank = 0;
  std::string master_address = "127.0.0.1";
  std::int64_t master_port = 0;
  // Where the other ranks reach this one; empty: found by host name.
  std::string own_address = {};
  // The ranks do not reach each other: the worker carries what they exchange (file_exchange.h).
  bool by_worker = false;

  // RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, OFFSHOOT_RANK_ADDRESS and
  // OFFSHOOT_EXCHANGE; unset: one rank. Throws Error(kBadSpec) naming the variable that is wrong.
  static RankEnvironment FromProcess();
};

class Collective {
 public:
  virtual ~Collective() = default;
  virtual std::int64_t rank() const = 0;
  virtual std::int64_t world_size() const = 0;
  // In place, contiguous. The same bits on every rank.
  virtual void AllReduceSum(at::Tensor& tensor) = 0;
  // From rank 0 to all, in place.
  virtual void Broadcast(at::Tensor& tensor) = 0;
  virtual void Barrier() = 0;
};

// Where the ranks of a job meet.
class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  // Once. One rank: no communication at all. "cpu": Gloo. "cuda:N": NCCL, in builds with
  // OFFSHOOT_CUDA. Waits at most 30 minutes for the others. Throws Error(kBadSpec) for a device
  // this build cannot serve, Error(kRankLost) if the others do not come.
  virtual std::unique_ptr<Collective> Join(const std::string& device) = 0;
};

// Rank 0 listens (MASTER_PORT 0: on any free port) and calls on_listening with the port; the others
// connect. Throws Error(kRankLost) naming the address.
std::unique_ptr<Rendezvous> OpenRendezvous(const RankEnvironment& environment,
                                           const std::function<void(std::int64_t)>& on_listening);

// Both at once.
std::unique_ptr<Collective> MakeCollective(const RankEnvironment& environment,
                                           const std::string& device,
                                           const std::function<void(std::int64_t)>& on_listening);

}  // namespace offshoot::trainer
