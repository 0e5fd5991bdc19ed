#include "cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "cli/exit_code.h"

namespace offshoot::cli {
namespace {

// A signal's handler has nothing but globals to talk to.
std::atomic<bool> counting{false};
std::atomic<int> interrupts{0};

void OnSignal(int) {
  if (!counting.load()) _exit(kInterrupted);
  interrupts.fetch_add(1);
}

}  // namespace

void ExitOnInterrupt() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaction(number, &action, nullptr);
}

InterruptCounter::InterruptCounter() {
  interrupts.store(0);
  counting.store(true);
}

InterruptCounter::~InterruptCounter() { counting.store(false); }

int InterruptCounter::count() const { return interrupts.load(); }

}  // namespace offshoot::cli
