#include "trainer/weights/host_tensor.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include <cstddef>
#include <new>

namespace offshoot::trainer {
namespace {

constexpr std::size_t kSmallestMapping = std::size_t{128} << 10;

}  // namespace

at::Tensor NewHostTensor(at::IntArrayRef sizes, at::ScalarType dtype) {
  std::size_t bytes = c10::elementSize(dtype);
  for (const std::int64_t size : sizes) bytes *= static_cast<std::size_t>(size);
  const auto options = at::TensorOptions().dtype(dtype);
  if (bytes < kSmallestMapping) return at::empty(sizes, options);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return at::from_blob(
      data, sizes, [bytes](void* memory) { munmap(memory, bytes); }, options);
}

}  // namespace offshoot::trainer
