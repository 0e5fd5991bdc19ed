#include "trainer/heap.h"

#include <c10/core/CPUAllocator.h>
#include <malloc.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>

namespace offshoot::trainer {
namespace {

constexpr std::size_t kAlignment = 64;  // LibTorch's
constexpr std::size_t kPage = 4096;
constexpr std::size_t kLargeBytes = 4 << 20;

// Mappings of large tensors, kept when they are freed for the next tensor of the same size: a new
// mapping costs a page fault for each of its pages, and a step makes the same tensors again and
// again. Where none fits, kept ones of as many bytes are given back first, so that kept and used
// ones together are never more than were used at one time. Thread-safe.
class LargeBlocks {
 public:
  // Null if there is no memory. bytes: whole pages.
  void* Take(std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = kept_.find(bytes); found != kept_.end()) {
      void* const block = found->second;
      kept_.erase(found);
      return block;
    }
    for (std::size_t given = 0; given < bytes && !kept_.empty();) given += GiveBackLargest();
    void* const block =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return block == MAP_FAILED ? nullptr : block;
  }
  void Keep(void* block, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.emplace(bytes, block);
  }
  void GiveAllBack() {
    const std::lock_guard<std::mutex> lock(mutex_);
    while (!kept_.empty()) GiveBackLargest();
  }

 private:
  std::size_t GiveBackLargest() {
    const auto largest = std::prev(kept_.end());
    const std::size_t bytes = largest->first;
    munmap(largest->second, bytes);
    kept_.erase(largest);
    return bytes;
  }

  std::mutex mutex_;
  std::multimap<std::size_t, void*> kept_;
};

LargeBlocks& Large() {
  static auto* const blocks = new LargeBlocks;  // outlives every tensor
  return *blocks;
}

// LibTorch's own allocator asks for aligned memory, which glibc before 2.38 cuts out of a larger
// free piece: what one tensor leaves, the next of its size does not fit into. Asking for the
// alignment on top and aligning here, it fits. (Training SmolLM2-135M on 4 x 128 tokens left 193 MB
// of 512 MB free in the heap, and now leaves a few.)
class TensorAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    const c10::Device device(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &Free, device};
    const bool fits = bytes <= SIZE_MAX - kAlignment - kPage;
    const bool large = bytes >= kLargeBytes;
    const std::size_t whole = (bytes + kAlignment + kPage - 1) / kPage * kPage;
    void* const piece = !fits   ? nullptr
                        : large ? Large().Take(whole)
                                : std::malloc(bytes + kAlignment);
    TORCH_CHECK(piece != nullptr, "out of memory: there is no room for a tensor of ", bytes,
                " bytes.");
    // malloc's pieces are aligned to 16 bytes, so there is room for a word before the data: the
    // piece's address, or the odd number next to a mapping's size.
    const auto begin = reinterpret_cast<std::uintptr_t>(piece);
    auto* const data =
        reinterpret_cast<std::uintptr_t*>((begin + kAlignment) / kAlignment * kAlignment);
    data[-1] = large ? whole + 1 : begin;
    return {data, data, &Free, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void Free(void* data) {
    if (data == nullptr) return;
    const std::uintptr_t word = static_cast<std::uintptr_t*>(data)[-1];
    if (word % 2 == 0) return std::free(reinterpret_cast<void*>(word));
    Large().Keep(static_cast<char*>(data) - kAlignment, word - 1);
  }
};

}  // namespace

void SetUpHeap() {
  // One heap for all threads: what the backward pass's thread frees, the forward pass takes again.
  // On dense-bf16 (bench/) the peak is 4 % lower and a step takes as long.
  mallopt(M_ARENA_MAX, 1);
  // Large buffers are mapped, and given back when freed. By itself the bound for that rises with
  // what is freed, up to 32 MB: buffers of many tokens then lie in a heap that they tear into
  // pieces, other ones in every run (16 rows of 2,048 tokens, recomputing: peaks from 970 to 1,264
  // MB, now 804 to 821). Setting it stops the other bound from rising, too.
  mallopt(M_MMAP_THRESHOLD, kLargeBytes);
  // What a step frees, the next one takes again: giving it back in between cost dense-bf16 37,000
  // page faults a step, 5 % of its time. TrimHeap is for the ends of phases.
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  c10::SetCPUAllocator(new TensorAllocator());  // for good
}

void TrimHeap() {
  Large().GiveAllBack();
  malloc_trim(0);
}

}  // namespace offshoot::trainer
