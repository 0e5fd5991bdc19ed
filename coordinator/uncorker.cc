#include "coordinator/uncorker.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "absl/time/clock.h"

namespace offshoot {
namespace {

constexpr absl::Duration kAfterTheHead = absl::Milliseconds(20);

}  // namespace

Uncorker::Uncorker() : thread_([this] { Run(); }) {}

Uncorker::~Uncorker() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void Uncorker::Begin(int socket) {
  absl::MutexLock lock(&mutex_);
  begun_.push_back({socket, absl::Now() + kAfterTheHead});
}

void Uncorker::End(int socket) {
  absl::MutexLock lock(&mutex_);
  std::erase_if(begun_, [socket](const Begun& one) { return one.socket == socket; });
}

void Uncorker::Run() {
  absl::MutexLock lock(&mutex_);
  while (true) {
    mutex_.Await(absl::Condition(this, &Uncorker::HasWork));
    if (!stopping_) mutex_.AwaitWithDeadline(absl::Condition(&stopping_), begun_.front().due);
    if (stopping_) return;
    for (; !begun_.empty() && begun_.front().due <= absl::Now(); begun_.pop_front()) {
      const int no = 0;
      setsockopt(begun_.front().socket, IPPROTO_TCP, TCP_CORK, &no, sizeof(no));
    }
  }
}

}  // namespace offshoot
