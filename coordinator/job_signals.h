// Tells the streams that watch a job that there is something new to read: an event, log text, a
// metric. It carries nothing itself; a watcher reads on from where it was. Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/ids.h"

namespace offshoot {

class JobSignals {
 public:
  // Called for each signal until the handle is gone; must be quick and must not call back in here.
  using Callback = std::function<void()>;
  using Handle = std::shared_ptr<Callback>;

  Handle Watch(const JobId& job_id, Callback callback) {
    Handle handle = std::make_shared<Callback>(std::move(callback));
    absl::MutexLock lock(&mutex_);
    std::vector<std::weak_ptr<Callback>>& list = watchers_[job_id];
    std::erase_if(list, [](const auto& other) { return other.expired(); });
    list.push_back(handle);
    return handle;
  }

  void Signal(const JobId& job_id) {
    std::vector<Handle> called;
    {
      absl::MutexLock lock(&mutex_);
      const auto it = watchers_.find(job_id);
      if (it == watchers_.end()) return;
      std::erase_if(it->second, [](const auto& other) { return other.expired(); });
      for (const auto& watcher : it->second) {
        if (Handle handle = watcher.lock()) called.push_back(std::move(handle));
      }
      if (it->second.empty()) watchers_.erase(it);
    }
    for (const Handle& handle : called) (*handle)();
  }

 private:
  absl::Mutex mutex_;
  std::map<JobId, std::vector<std::weak_ptr<Callback>>> watchers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace offshoot
