#include "trainer/memory_estimate.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <variant>

namespace offshoot::trainer {
namespace {

// Measured with no model loaded: LibTorch's and our own pages, the thread pools; and what the heap
// keeps free between its pieces while a model trains (measured 0 to 20 MB).
constexpr std::int64_t kProcessBytes = 135'000'000 + 15'000'000;
// A tokenizer, per token of its vocabulary (measured with 49,152).
constexpr std::int64_t kTokenizerBytes = 1'000;
constexpr std::int64_t kDeviceContextBytes = 500'000'000;
constexpr std::int64_t kLossChunkRows = 128;  // elsewhere than on a CPU

// The product gated * up, its gradient and the gradients of both: measured 3.7 to 5.2.
constexpr std::int64_t kPassingCopies = 4;

struct LayerElements {
  std::int64_t kept = 0;       // per token, from forward to backward
  std::int64_t inside = 0;     // of it, what the feed-forward part keeps
  std::int64_t passing = 0;    // per token: the width of the largest buffer while the layer runs
  std::int64_t attending = 0;  // per token, float32, on a CPU: what attention's kernels are given
  std::int64_t heads = 0;
  std::int64_t hidden = 0;
};

// What each part saves: its linear layers' inputs (but not norms' results and silu(gate) * up,
// which are made again), its norms' inputs, rotated queries and keys, the attention's output, gate
// and up. A new kind of part is a new overload.
void Count(const SoftmaxAttentionSpec& attention, LayerElements& count) {
  const std::int64_t query = attention.heads * attention.head_dim;
  const std::int64_t key = attention.key_value_heads * attention.head_dim;
  const int copies = attention.head_norm == HeadNorm::kNone ? 1 : 2;
  count.kept += query + copies * (query + key) + key + attention.heads;
  count.attending = 4 * query + 4 * key;
  count.heads = attention.heads;
}

void Count(const LatentAttentionSpec& attention, LayerElements& count) {
  const std::int64_t width = attention.plain_dim + attention.rotary_dim;
  count.kept += 2 * attention.query_rank + 2 * attention.key_value_rank +
                3 * attention.heads * width + 2 * attention.heads * attention.value_dim;
  count.attending = 4 * attention.heads * width + 4 * attention.heads * attention.value_dim;
  count.heads = attention.heads;
}

void Count(const LightningAttentionSpec& attention, LayerElements& count) {
  count.kept += 6 * attention.heads * attention.head_dim;
  count.attending = 8 * attention.heads * attention.head_dim;
  count.heads = attention.heads;
}

void Count(const DenseMlpSpec& dense, LayerElements& count) {
  count.kept += 2 * dense.intermediate;
  count.passing += dense.intermediate;
}

void Count(const MoeSpec& moe, LayerElements& count) {
  std::int64_t width = moe.intermediate * moe.router.chosen;
  for (const DenseMlpSpec& shared : moe.shared) {
    width += shared.intermediate;
  }
  count.kept += 2 * width + count.hidden + 2 * moe.router.experts;
  // Each chosen expert's result stands by itself until all are summed.
  count.passing += width + moe.router.chosen * count.hidden / kPassingCopies;
}

LayerElements CountLayer(const LayerSpec& layer, std::int64_t hidden) {
  LayerElements count;
  count.hidden = hidden;
  count.kept = 2 * hidden;
  const auto add = [&count](const auto& part) { Count(part, count); };
  std::visit(add, layer.attention);
  const std::int64_t before = count.kept;
  std::visit(add, layer.feed_forward);
  count.inside = count.kept - before;
  return count;
}

std::int64_t ReadNumberAfter(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    if (word == key) {
      std::int64_t kilobytes = 0;
      file >> kilobytes;
      return kilobytes * 1024;
    }
  }
  return 0;
}

}  // namespace

MemoryEstimate EstimateMemory(const ArchSpec& arch, const MemoryShape& shape) {
  MemoryEstimate estimate;
  estimate.process_bytes =
      shape.on_cpu ? kProcessBytes + (shape.tokenizer ? kTokenizerBytes * arch.vocab_size : 0)
                   : kDeviceContextBytes;
  estimate.weight_bytes = shape.weight_bytes;
  estimate.adapter_bytes = shape.adapter_parameters * 4 * (shape.local_steps ? 9 : 4);
  const auto layers = static_cast<std::int64_t>(arch.layers.size());
  std::int64_t kept = shape.low_rank_columns, inside = 0;
  LayerElements largest;
  for (const LayerSpec& layer : arch.layers) {
    const LayerElements count = CountLayer(layer, arch.hidden_size);
    kept += count.kept;
    inside += count.inside;
    largest.inside = std::max(largest.inside, count.inside);
    largest.kept = std::max(largest.kept, count.kept);
    largest.passing = std::max(largest.passing, count.passing);
    largest.attending = std::max(largest.attending, count.attending);
    largest.heads = std::max(largest.heads, count.heads);
  }
  if (shape.recomputed == Recomputed::kFeedForward) {
    kept -= inside - largest.inside;
  } else if (shape.recomputed == Recomputed::kLayers) {
    kept = largest.kept + layers * arch.hidden_size +
           shape.low_rank_columns / std::max<std::int64_t>(1, layers);
  }
  estimate.activation_bytes = shape.tokens * kept * shape.bytes_per_element;
  const std::int64_t feed_forward =
      shape.tokens * largest.passing * kPassingCopies * shape.bytes_per_element;
  std::int64_t attention = 0, loss = 0;
  if (shape.on_cpu) {
    // Queries, keys, values, the result, its gradient and theirs: in float32 where the processor
    // does not multiply bfloat16.
    attention = shape.tokens * largest.attending * 4;
    // The last hidden states and their gradient in float32, the labels' rows of the head and the
    // gradient once more; logits are never in memory.
    loss = shape.tokens * arch.hidden_size * (8 + 2 * shape.bytes_per_element);
  } else {
    // One row's scores and their gradient for a block of queries.
    attention =
        2 * largest.heads * std::min<std::int64_t>(shape.longest_row, 512) * shape.longest_row * 4;
    loss = 2 * std::min(kLossChunkRows, shape.tokens) * arch.vocab_size *
           (4 + shape.bytes_per_element);
  }
  estimate.working_bytes =
      std::max({feed_forward, attention, loss}) +
      (shape.on_cpu ? shape.widened_on_cpu_bytes + shape.tokens * shape.summed_width * 4
                    : shape.widened_elsewhere_bytes);
  return estimate;
}

std::string MemoryEstimate::ToString() const {
  return "weights " + FormatBytes(weight_bytes) + ", adapter with its optimizer " +
         FormatBytes(adapter_bytes) + ", activations " + FormatBytes(activation_bytes) +
         ", working buffers " + FormatBytes(working_bytes) + ", the process itself " +
         FormatBytes(process_bytes);
}

std::int64_t AvailableMemoryBytes() {
  std::int64_t available = ReadNumberAfter("/proc/meminfo", "MemAvailable:");
  std::int64_t limit = 0;
  std::int64_t used = 0;
  // cgroup v2; "max" does not parse as a number and leaves the machine's figure.
  if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit &&
      std::ifstream("/sys/fs/cgroup/memory.current") >> used) {
    available = std::min(available, std::max<std::int64_t>(0, limit - used));
  }
  struct rlimit address_space;
  if (getrlimit(RLIMIT_AS, &address_space) == 0 && address_space.rlim_cur != RLIM_INFINITY) {
    const std::int64_t size = ReadNumberAfter("/proc/self/status", "VmSize:");
    available = std::min(
        available,
        std::max<std::int64_t>(0, static_cast<std::int64_t>(address_space.rlim_cur) - size));
  }
  return available;
}

std::int64_t ResidentMemoryBytes() { return ReadNumberAfter("/proc/self/status", "VmRSS:"); }

std::int64_t PeakMemoryBytes() { return ReadNumberAfter("/proc/self/status", "VmHWM:"); }

std::string FormatBytes(std::int64_t bytes) {
  char text[32];
  if (bytes >= 1'000'000'000) {
    std::snprintf(text, sizeof(text), "%.1f GB", static_cast<double>(bytes) / 1e9);
  } else {
    std::snprintf(text, sizeof(text), "%lld MB",
                  static_cast<long long>((bytes + 500'000) / 1'000'000));
  }
  return text;
}

}  // namespace offshoot::trainer
