#include "tests/sim/sim_link.h"

#include <algorithm>
#include <utility>

#include "coordinator/service/convert.h"
#include "tests/sim/sim_worker.h"

namespace offshoot::sim {
namespace {

constexpr int kLongestTransitMs = 50;
constexpr int kLongestOvertakingMs = 3'000;

}  // namespace

SimLink::SimLink(World& world, SimWorker& worker)
    : world_(world), worker_(worker), life_(world.coordinator_life()) {}

bool SimLink::SessionLives() const {
  return session_ != 0 && life_ != 0 && world_.coordinator_life() == life_;
}

void SimLink::Open() {
  if (life_ == 0 || world_.IsPartitioned(worker_.number())) {
    broken_ = true;
    world_.After(world_.Delay(10, 5'000), [self = shared_from_this()] {
      self->TellWorker(absl::UnavailableError("cannot connect"));
    });
    return;
  }
  session_ = world_.controller()->OpenSession(shared_from_this());
}

absl::Time SimLink::InOrder() {
  last_up_ =
      std::max(last_up_ + absl::Microseconds(1), world_.now() + world_.Delay(1, kLongestTransitMs));
  return last_up_;
}

absl::Time SimLink::NextUp() {
  const absl::Time arrives = InOrder();
  // Overtaken by what is sent later.
  return world_.Chance(3) ? arrives + world_.Delay(1, kLongestOvertakingMs) : arrives;
}

void SimLink::SendUp(v1::WorkerMessage message) {
  if (broken_ || session_ == 0) return;
  if (world_.Chance(2) && !message.has_register_()) {
    // This message is lost, and all that follow.
    Break(world_.Delay(1, 20'000), world_.Delay(1, 20'000));
    return;
  }
  const bool first = message.has_register_();
  const int copies = !first && world_.Chance(20) ? 2 : 1;
  auto shared = std::make_shared<const v1::WorkerMessage>(std::move(message));
  for (int i = 0; i < copies; ++i) {
    const bool in_spite_of_break = first || world_.Below(2) == 0;
    world_.After((first ? InOrder() : NextUp()) - world_.now(),
                 [self = shared_from_this(), shared, in_spite_of_break] {
                   if (!self->broken_ || in_spite_of_break) self->Deliver(shared);
                 });
  }
}

void SimLink::Deliver(std::shared_ptr<const v1::WorkerMessage> message) {
  if (!SessionLives()) return;
  // Of a link that holds, what is on its way comes when the network is back, and nothing overtakes
  // it, however early that is after all.
  held_up_ = std::max(held_up_, world_.HealedAt(worker_.number()));
  if (held_up_ > world_.now()) {
    if (broken_) return;
    world_.After(held_up_ - world_.now(),
                 [self = shared_from_this(), message] { self->Deliver(message); });
    return;
  }
  Controller& controller = *world_.controller();
  if (message->has_register_()) {
    auto info = RegisterFromProto(message->register_());
    if (info.ok()) controller.Register(session_, *std::move(info), [] {});
  } else if (message->has_heartbeat()) {
    auto held = HeldFromProto(message->heartbeat().held_attempts());
    if (held.ok()) controller.Heartbeat(session_, *std::move(held), 1, [] {});
  } else if (message->has_attempt_event()) {
    auto report = ReportFromProto(message->attempt_event());
    if (report.ok()) controller.Report(session_, *std::move(report), [] {});
  } else if (message->has_contribution()) {
    auto contribution = ContributionFromProto(message->contribution());
    if (contribution.ok()) controller.Contribute(session_, *std::move(contribution), [] {});
  }
  world_.Pump();
}

void SimLink::Break(absl::Duration worker_notices, absl::Duration coordinator_notices) {
  broken_ = true;
  world_.After(worker_notices, [self = shared_from_this()] {
    self->TellWorker(absl::UnavailableError("the link broke"));
  });
  if (session_ == 0) return;
  world_.After(coordinator_notices, [self = shared_from_this()] {
    if (!self->SessionLives()) return;
    self->world_.controller()->CloseSession(self->session_);
    self->world_.Pump();
  });
}

void SimLink::TellWorker(const absl::Status& status) {
  if (std::exchange(told_worker_, true) || abandoned_) return;
  broken_ = true;
  worker_.LinkClosed(*this, status);
}

void SimLink::Send(SessionMessage message) {
  if (broken_ || world_.coordinator_life() != life_) return;
  last_down_ = std::max(last_down_ + absl::Microseconds(1),
                        world_.coordinator_free() + world_.Delay(1, kLongestTransitMs));
  const bool in_spite_of_break = world_.Below(2) == 0;
  auto proto = std::make_shared<const v1::CoordinatorMessage>(ToProto(message));
  world_.After(last_down_ - world_.now(), [self = shared_from_this(), proto, in_spite_of_break] {
    const bool dead = self->world_.coordinator_life() != self->life_;
    if ((self->broken_ || dead) && !in_spite_of_break) return;
    self->Receive(proto);
  });
}

void SimLink::Receive(std::shared_ptr<const v1::CoordinatorMessage> message) {
  if (abandoned_ || told_worker_) return;
  held_down_ = std::max(held_down_, world_.HealedAt(worker_.number()));
  if (held_down_ > world_.now()) {
    if (broken_) return;
    world_.After(held_down_ - world_.now(),
                 [self = shared_from_this(), message] { self->Receive(message); });
    return;
  }
  worker_.Receive(*this, *message);
}

void SimLink::Close(absl::Status status) {
  if (world_.coordinator_life() != life_) return;
  const auto self = shared_from_this();
  world_.After(world_.Delay(1, kLongestTransitMs), [self, status = std::move(status)] {
    self->TellWorker(status);
    if (!self->SessionLives()) return;
    self->world_.controller()->CloseSession(self->session_);
    self->world_.Pump();
  });
}

}  // namespace offshoot::sim
