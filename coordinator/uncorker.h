// libmicrohttpd sets TCP_CORK with the head of a file's reply and leaves it set until the last
// byte, which costs a tenth of the speed. This takes it back when the head has gone. Thread-safe.
#pragma once

#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace offshoot {

class Uncorker {
 public:
  Uncorker();
  ~Uncorker();

  // The reply's head is about to go out on this socket.
  void Begin(int socket);
  // The reply is over; to be called before the socket may be closed.
  void End(int socket);

 private:
  struct Begun {
    int socket;
    absl::Time due;
  };

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !begun_.empty();
  }
  void Run();

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Begun> begun_ ABSL_GUARDED_BY(mutex_);  // by time
  std::thread thread_;
};

}  // namespace offshoot
