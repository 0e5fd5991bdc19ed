// Strong identifiers: a JobId cannot be passed where a WorkerId is wanted. Values; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace offshoot {

template <typename Tag>
class Id {
 public:
  Id() = default;
  explicit Id(std::string value) : value_(std::move(value)) {}
  const std::string& value() const { return value_; }
  bool empty() const { return value_.empty(); }
  auto operator<=>(const Id&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const Id& id) {
    return H::combine(std::move(h), id.value_);
  }

 private:
  std::string value_;
};

using JobId = Id<struct JobIdTag>;        // job-<time><random>, sorts by creation
using WorkerId = Id<struct WorkerIdTag>;  // wrk-<random>
using IncarnationId = Id<struct IncarnationIdTag>;
using DeviceId = Id<struct DeviceIdTag>;          // cpu:0, cuda:1 within a worker
using DerivativeId = Id<struct DerivativeIdTag>;  // drv-<digest prefix>

// The try at running a job; from 1. Reports of an older attempt are refused.
enum class AttemptNumber : std::int32_t {};

// prefix + 10 characters of time (ms, base 32, sorts) + 8 random characters. Thread-safe.
std::string MakeSortableId(absl::string_view prefix, std::int64_t unix_ms);
// prefix + 16 random characters. Thread-safe.
std::string MakeRandomId(absl::string_view prefix);

}  // namespace offshoot
