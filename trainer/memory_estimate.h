// How much memory a job's process will need at its peak, from shapes alone: what preflight reports
// and what an out-of-memory message is made of. Pure; thread-safe. memory_measured_test.cc holds it
// against the peak of real processes.
#pragma once

#include <cstdint>
#include <string>

#include "trainer/models/arch_spec.h"
#include "trainer/models/recomputed.h"

namespace offshoot::trainer {

struct MemoryShape {
  std::int64_t weight_bytes = 0;  // of the base, as it is kept
  std::int64_t adapter_parameters = 0;
  bool local_steps = false;           // an outer optimizer stands beside AdamW (OuterStep)
  std::int64_t low_rank_columns = 0;  // ranks of all adapters that a token passes, summed
  // Of a quantised base, dequantised at one time.
  std::int64_t widened_on_cpu_bytes = 0;
  std::int64_t widened_elsewhere_bytes = 0;
  // Of a weight that is dequantised in pieces: its inputs' gradient is summed in float32.
  std::int64_t summed_width = 0;
  std::int64_t bytes_per_element = 4;  // of the base's dtype: activations
  std::int64_t tokens = 0;             // of the largest micro-batch
  std::int64_t longest_row = 0;        // tokens
  Recomputed recomputed = Recomputed::kNothing;
  bool on_cpu = true;     // else the device's memory is meant
  bool tokenizer = true;  // one is loaded
};

struct MemoryEstimate {
  std::int64_t process_bytes = 0;  // libraries, tokenizer, buffers
  std::int64_t weight_bytes = 0;
  std::int64_t adapter_bytes = 0;     // with gradients and the optimizers' state
  std::int64_t activation_bytes = 0;  // what forward leaves for backward
  std::int64_t working_bytes = 0;     // the largest passing buffers: loss, attention, feed-forward
  std::int64_t Total() const {
    return process_bytes + weight_bytes + adapter_bytes + activation_bytes + working_bytes;
  }
  // "weights 270 MB, adapter 78 MB, activations 410 MB, ..."
  std::string ToString() const;
};

MemoryEstimate EstimateMemory(const ArchSpec& arch, const MemoryShape& shape);

// Bytes that a process may still take: the least of the machine's available memory, its cgroup's
// limit and its address-space limit. 0 if unknown.
std::int64_t AvailableMemoryBytes();
// VmRSS of this process: what it has resident now. 0 if unknown.
std::int64_t ResidentMemoryBytes();
// VmHWM of this process: the most it ever had resident. 0 if unknown.
std::int64_t PeakMemoryBytes();

// "1.5 GB", "270 MB": powers of 1000.
std::string FormatBytes(std::int64_t bytes);

}  // namespace offshoot::trainer
