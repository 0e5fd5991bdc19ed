#include "trainer/ops/dropout.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

namespace offshoot::trainer {
namespace {

// One round of splitmix64's finaliser: a bijection, so neighbouring indices become unrelated.
std::uint64_t Mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

at::Tensor DropoutCopy(const at::Tensor& x, double probability, std::uint64_t seed) {
  const std::int64_t count = x.numel();
  at::Tensor mask = at::empty(x.sizes(), at::TensorOptions().dtype(at::kFloat));
  float* out = mask.mutable_data_ptr<float>();
  const float kept = static_cast<float>(1.0 / (1.0 - probability));
  const auto threshold = static_cast<std::uint64_t>(probability * 4294967296.0);
  const std::uint64_t base = Mix(seed + 0x9e3779b97f4a7c15ULL);
  at::parallel_for(0, count, 32768, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::uint64_t draw = Mix(base + static_cast<std::uint64_t>(i)) >> 32;
      out[i] = draw < threshold ? 0.0F : kept;
    }
  });
  return x.mul(mask.to(x.device(), x.scalar_type()));
}

}  // namespace offshoot::trainer
