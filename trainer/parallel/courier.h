// For tests: carries the files of ranks that are threads of one process.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "trainer/parallel/file_exchange.h"

namespace offshoot::trainer {

class Courier {
 public:
  ExchangeLine LineOf(std::int64_t rank) {
    return {.announce = [this, rank](std::int64_t round,
                                     const std::string& path) { Put(round, rank, path); },
            .await = [this](std::int64_t round, std::int64_t of) { return Await(round, of); }};
  }
  // Whoever waits is told that nothing comes any more.
  void End() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

 private:
  void Put(std::int64_t round, std::int64_t rank, const std::string& path) {
    const std::lock_guard<std::mutex> lock(mutex_);
    paths_[{round, rank}] = path;
    changed_.notify_all();
  }
  std::string Await(std::int64_t round, std::int64_t rank) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return ended_ || paths_.contains({round, rank}); });
    return ended_ ? "" : paths_.at({round, rank});
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;                                                  // under mutex_
  std::map<std::pair<std::int64_t, std::int64_t>, std::string> paths_;  // under mutex_
};

}  // namespace offshoot::trainer
