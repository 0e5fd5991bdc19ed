// One session's stream between a worker and the coordinator: messages arrive late, some twice or
// after later ones, and what is on its way when the link breaks is lost in part. Each side hears of
// the break by itself, and perhaps much later.
#pragma once

#include <memory>

#include "coordinator/session_messages.h"
#include "offshoot/v1/cluster.pb.h"
#include "tests/sim/world.h"

namespace offshoot::sim {

class SimLink : public SessionPeer, public std::enable_shared_from_this<SimLink> {
 public:
  SimLink(World& world, SimWorker& worker);

  // The worker's side.
  void Open();
  void SendUp(v1::WorkerMessage message);
  void StallUp(absl::Duration time) { last_up_ = std::max(last_up_, world_.now()) + time; }
  // Nothing comes through any more. The two sides notice after at most so long.
  void Break(absl::Duration worker_notices, absl::Duration coordinator_notices);
  // The worker's process is gone, or has opened another session.
  void Abandon() { abandoned_ = true; }

  // The coordinator's side (SessionPeer).
  void Send(SessionMessage message) override;
  void Close(absl::Status status) override;

 private:
  bool SessionLives() const;
  void Deliver(std::shared_ptr<const v1::WorkerMessage> message);
  void Receive(std::shared_ptr<const v1::CoordinatorMessage> message);
  void TellWorker(const absl::Status& status);
  absl::Time InOrder();
  absl::Time NextUp();

  World& world_;
  SimWorker& worker_;
  const int life_;  // of the coordinator
  SessionId session_ = 0;
  bool broken_ = false;
  bool abandoned_ = false;
  bool told_worker_ = false;
  absl::Time last_up_ = absl::InfinitePast();
  absl::Time last_down_ = absl::InfinitePast();
  // Until when the network holds back what is on its way.
  absl::Time held_up_ = absl::InfinitePast();
  absl::Time held_down_ = absl::InfinitePast();
};

}  // namespace offshoot::sim
