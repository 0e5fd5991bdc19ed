// What this rank is doing, told once a second while it trains: a rank that has hung is found by
// what it does not get on with, not by whether its process is there. The worker judges
// (docs/trainer-protocol.md, `activity`).
//
// Thread-safe; owns one thread. Events of it may be dropped.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

#include "trainer/events.h"

namespace offshoot::trainer {

class Activity {
 public:
  enum class Kind {
    kWorking,          // must get on by itself
    kWaitingForRanks,  // gets on when the slowest rank does
    kWaitingForWorker  // gets on when the worker has stored something
  };

  explicit Activity(EventWriter& events);
  // Says that it is over.
  ~Activity();
  Activity(const Activity&) = delete;
  Activity& operator=(const Activity&) = delete;

  // Each call is progress: its time counts from here.
  void Begin(std::int64_t step, std::string what, Kind kind = Kind::kWorking);

 private:
  static constexpr std::chrono::seconds kInterval{1};
  void Tell();

  EventWriter& events_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;  // these are under mutex_
  bool begun_ = false;
  std::int64_t step_ = 0;
  std::string what_;
  Kind kind_ = Kind::kWorking;
  std::chrono::steady_clock::time_point since_;
  std::thread thread_;
};

}  // namespace offshoot::trainer
