// The trainer's expected failures. The trainer builds where no Abseil is (any machine with a
// LibTorch), and LibTorch itself throws, so it uses one exception type, caught in main alone.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace offshoot::trainer {

// The reason codes of docs/trainer-protocol.md.
enum class Reason {
  kBadSpec,
  kBadData,
  kBadModel,
  kNanLoss,
  kOutOfMemory,
  kDiskFull,
  kRankLost,  // another rank is gone: never the first cause, which that rank or its worker tells
  kInternal
};

// "BAD_SPEC", ...
const char* ReasonCode(Reason reason);

// what() is one sentence that names the thing and the remedy.
class Error : public std::runtime_error {
 public:
  Error(Reason reason, const std::string& message) : std::runtime_error(message), reason(reason) {}

  const Reason reason;
  std::int64_t step = 0;           // where it concerns one
  std::vector<std::int64_t> rows;  // data rows (0-based lines) that did it
};

}  // namespace offshoot::trainer
