#include "trainer/activity.h"

#include <utility>

namespace offshoot::trainer {
namespace {

const char* WaitingFor(Activity::Kind kind) {
  switch (kind) {
    case Activity::Kind::kWorking:
      return "";
    case Activity::Kind::kWaitingForRanks:
      return "ranks";
    case Activity::Kind::kWaitingForWorker:
      return "worker";
  }
  return "";
}

}  // namespace

Activity::Activity(EventWriter& events) : events_(events), thread_([this] { Tell(); }) {}

Activity::~Activity() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
  events_.Emit("activity",
               {{"step", step_}, {"doing", "done"}, {"waiting_for", "over"}, {"seconds", 0}});
}

void Activity::Begin(std::int64_t step, std::string what, Kind kind) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!begun_) {
    changed_.notify_all();
  }
  begun_ = true;
  step_ = step;
  what_ = std::move(what);
  kind_ = kind;
  since_ = std::chrono::steady_clock::now();
}

void Activity::Tell() {
  std::unique_lock<std::mutex> lock(mutex_);
  // The first is told at once: a rank that hangs before it was heard of would not be looked for.
  changed_.wait(lock, [this] { return begun_ || ending_; });
  while (!ending_) {
    nlohmann::json fields = {
        {"step", step_},
        {"doing", what_},
        {"waiting_for", WaitingFor(kind_)},
        {"seconds",
         std::chrono::duration<double>(std::chrono::steady_clock::now() - since_).count()}};
    lock.unlock();
    events_.EmitActivity(std::move(fields));
    lock.lock();
    changed_.wait_for(lock, kInterval, [this] { return ending_; });
  }
}

}  // namespace offshoot::trainer
