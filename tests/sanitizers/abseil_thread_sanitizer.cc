// Tells ThreadSanitizer of Abseil's mutexes.
//
// The distribution's libabsl and libgrpc are not built with the sanitizer and lock without pthread,
// so everything that an absl::Mutex guards, ours and gRPC's, would look like a race. Each function
// below takes the place of Abseil's in the whole process (the executable's symbols come first),
// calls the real one and says what it ordered: an unlock happens before the next lock.
//
// What this does not see: the conditions that a thread evaluates for another one that waits
// (suppressed in suppressions.txt), and lock-free queues inside gRPC.

#include <absl/synchronization/mutex.h>
#include <absl/synchronization/notification.h>
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdlib>
#include <cstring>

namespace {

// The function that `own` hides: the next one of that name in the order of the libraries.
template <typename Function>
Function Hidden(Function own) {
  void* address = nullptr;
  std::memcpy(&address, &own, sizeof(address));
  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_sname == nullptr) std::abort();
  void* next = dlsym(RTLD_NEXT, info.dli_sname);
  if (next == nullptr) std::abort();
  std::memcpy(&own, &next, sizeof(next));
  return own;
}

// Runs what gives the mutex back for a while and has it again when it returns.
template <typename Wait>
auto Waiting(void* mutex, const Wait& wait) {
  __tsan_release(mutex);
  struct Again {
    void* mutex;
    ~Again() { __tsan_acquire(mutex); }
  } again{mutex};
  return wait();
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  static const auto real = Hidden(&Mutex::Lock);
  (this->*real)();
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  static const auto real = Hidden(&Mutex::TryLock);
  const bool locked = (this->*real)();
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  static const auto real = Hidden(&Mutex::Unlock);
  __tsan_release(this);
  (this->*real)();
}

void Mutex::ReaderLock() {
  static const auto real = Hidden(&Mutex::ReaderLock);
  (this->*real)();
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  static const auto real = Hidden(&Mutex::ReaderUnlock);
  __tsan_release(this);
  (this->*real)();
}

void Mutex::LockWhen(const Condition& condition) {
  static const auto real = Hidden(&Mutex::LockWhen);
  (this->*real)(condition);
  __tsan_acquire(this);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  static const auto real = Hidden(&Mutex::LockWhenWithTimeout);
  const bool met = (this->*real)(condition, timeout);
  __tsan_acquire(this);
  return met;
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  static const auto real = Hidden(&Mutex::LockWhenWithDeadline);
  const bool met = (this->*real)(condition, deadline);
  __tsan_acquire(this);
  return met;
}

void Mutex::Await(const Condition& condition) {
  static const auto real = Hidden(&Mutex::Await);
  Waiting(this, [&] { (this->*real)(condition); });
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static const auto real = Hidden(&Mutex::AwaitWithTimeout);
  return Waiting(this, [&] { return (this->*real)(condition, timeout); });
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static const auto real = Hidden(&Mutex::AwaitWithDeadline);
  return Waiting(this, [&] { return (this->*real)(condition, deadline); });
}

void CondVar::Wait(Mutex* mutex) {
  static const auto real = Hidden(&CondVar::Wait);
  Waiting(mutex, [&] { (this->*real)(mutex); });
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static const auto real = Hidden(&CondVar::WaitWithTimeout);
  return Waiting(mutex, [&] { return (this->*real)(mutex, timeout); });
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static const auto real = Hidden(&CondVar::WaitWithDeadline);
  return Waiting(mutex, [&] { return (this->*real)(mutex, deadline); });
}

void Notification::Notify() {
  static const auto real = Hidden(&Notification::Notify);
  __tsan_release(this);
  (this->*real)();
}

void Notification::WaitForNotification() const {
  static const auto real = Hidden(&Notification::WaitForNotification);
  (this->*real)();
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  static const auto real = Hidden(&Notification::WaitForNotificationWithTimeout);
  const bool notified = (this->*real)(timeout);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl
