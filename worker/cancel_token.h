// Lets one thread tell another to give up what it is doing: a wait, a download, an upload.
// Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace offshoot::worker {

class CancelToken {
 public:
  void Cancel() {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    seen_ = true;
    for (const std::function<void()>& callback : callbacks_) callback();
  }
  // Takes no lock, so that it may be asked under any.
  bool cancelled() const { return seen_; }
  // Waits; false, at once, when cancelled.
  bool Sleep(absl::Duration duration) const {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&cancelled_), duration);
    return !cancelled_;
  }

  // While it lives, Cancel calls callback (at once if cancelled already). The callback must be
  // quick and must not use the token.
  class Scope {
   public:
    Scope(CancelToken& token, std::function<void()> callback) : token_(token) {
      absl::MutexLock lock(&token_.mutex_);
      if (token_.cancelled_) callback();
      position_ = token_.callbacks_.insert(token_.callbacks_.end(), std::move(callback));
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() {
      absl::MutexLock lock(&token_.mutex_);
      token_.callbacks_.erase(position_);
    }

   private:
    CancelToken& token_;
    std::list<std::function<void()>>::iterator position_;
  };

 private:
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> seen_ = false;
  std::list<std::function<void()>> callbacks_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace offshoot::worker
