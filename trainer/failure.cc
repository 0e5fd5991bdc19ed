#include "trainer/failure.h"

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <system_error>

namespace offshoot::trainer {
namespace {

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

bool IsAllocationFailure(const std::string& message) {
  return message.find("DefaultCPUAllocator") != std::string::npos ||
         message.find("out of memory") != std::string::npos;
}

}  // namespace

Failure DescribeCurrentException() {
  Failure failure;
  try {
    throw;
  } catch (const Error& error) {
    return {error.reason, error.what(), error.step, error.rows};
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    failure.message = FirstLine(message);
    if (IsAllocationFailure(message)) {
      failure.reason = Reason::kOutOfMemory;
    }
  } catch (const std::bad_alloc&) {
    failure.reason = Reason::kOutOfMemory;
    failure.message = "the process ran out of memory.";
  } catch (const std::system_error& error) {
    failure.message = FirstLine(error.what());
    if (error.code() == std::errc::no_space_on_device) {
      failure.reason = Reason::kDiskFull;
    }
  } catch (const std::exception& error) {
    failure.message = FirstLine(error.what());
    if (IsAllocationFailure(error.what())) {
      failure.reason = Reason::kOutOfMemory;
    }
  } catch (...) {
    failure.message = "an exception of unknown kind ended the program.";
  }
  return failure;
}

bool CurrentExceptionIsOutOfMemory() {
  return DescribeCurrentException().reason == Reason::kOutOfMemory;
}

}  // namespace offshoot::trainer
