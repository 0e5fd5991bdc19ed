#include "trainer/heap.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <vector>

#include "trainer/failure.h"

namespace offshoot::trainer {
namespace {

class Heap : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { SetUpHeap(); }
};

TEST_F(Heap, Tensors_AreAlignedAndHoldTheirValues) {
  EXPECT_EQ(at::empty({0}).numel(), 0);
  for (const std::int64_t size : {1, 3, 1000, 1'000'000, 3'000'000}) {
    const at::Tensor ones = at::ones({size}), copy = ones.clone();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(ones.data_ptr()) % 64, 0U) << size;
    EXPECT_EQ(copy.sum().item<double>(), static_cast<double>(size));
  }
}

TEST_F(Heap, TensorTooLarge_IsOutOfMemory) {
  try {
    at::empty({std::numeric_limits<std::int64_t>::max() / 8}, at::kFloat);
    ADD_FAILURE() << "there is room for everything";
  } catch (...) {
    EXPECT_TRUE(CurrentExceptionIsOutOfMemory());
  }
}

TEST_F(Heap, LargeTensor_GetsTheMappingOfTheLastOfItsSize) {
  TrimHeap();
  const void* first = nullptr;
  for (int i = 0; i < 3; ++i) {
    const at::Tensor tensor = at::ones({2'000'000});
    if (i == 0) first = tensor.data_ptr();
    EXPECT_EQ(tensor.data_ptr(), first);
  }
}

std::int64_t ResidentBytes() {
  std::int64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * 4096;
}

TEST_F(Heap, KeptMappings_GiveWayToTensorsOfOtherSizes) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer has a heap of its own";
#endif
  TrimHeap();
  const std::int64_t before = ResidentBytes();
  constexpr std::int64_t kFloats = 2 << 20;  // 8 MB
  for (const std::int64_t width : {1, 2, 3}) {
    std::vector<at::Tensor> tensors;
    for (std::int64_t i = 0; i < 12 / width; ++i) tensors.push_back(at::ones({width * kFloats}));
    EXPECT_LT(ResidentBytes() - before, 13 * kFloats * 4) << width;
  }
  EXPECT_GT(ResidentBytes() - before, 11 * kFloats * 4);
  TrimHeap();
  EXPECT_LT(ResidentBytes() - before, kFloats * 4);
}

// As a forward pass does: a passing tensor beside each that stays.
TEST_F(Heap, PassingTensors_LeaveNoHolesBetweenThoseThatStay) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer has a heap of its own";
#endif
  TrimHeap();
  const auto before = mallinfo2();
  std::vector<at::Tensor> kept;
  for (int i = 0; i < 100; ++i) {
    const at::Tensor passing = at::empty({600'000}, at::kByte);
    kept.push_back(at::empty({400'000}, at::kByte));
  }
  const auto after = mallinfo2();
  EXPECT_LT(after.arena - before.arena, 100 * 400'000 + 5'000'000);
}

}  // namespace
}  // namespace offshoot::trainer
