#include "trainer/ops/dropout.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "trainer/ops/products.h"

namespace offshoot::trainer {
namespace {

constexpr std::uint64_t kFirstFactor = 0xbf58476d1ce4e5b9ULL, kSecondFactor = 0x94d049bb133111ebULL;

// splitmix64's finaliser: a bijection, so neighbouring indices become unrelated.
std::uint64_t Mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * kFirstFactor;
  z = (z ^ (z >> 27)) * kSecondFactor;
  return z ^ (z >> 31);
}

struct Mask {
  std::uint64_t base;       // element i lives if the upper half of Mix(base + i) is not below
  std::uint64_t threshold;  // this, and is then
  float kept;               // times this

  Mask(double probability, std::uint64_t seed)
      : base(Mix(seed + 0x9e3779b97f4a7c15ULL)),
        threshold(static_cast<std::uint64_t>(probability * 4294967296.0)),
        kept(static_cast<float>(1.0 / (1.0 - probability))) {}
};

at::Tensor MaskHere(at::IntArrayRef sizes, const Mask& mask) {
  const at::Tensor made = at::empty(sizes, at::TensorOptions().dtype(at::kFloat));
  auto* out = made.mutable_data_ptr<float>();
  at::parallel_for(0, made.numel(), 32768, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::uint64_t draw = Mix(mask.base + static_cast<std::uint64_t>(i)) >> 32;
      out[i] = draw < mask.threshold ? 0.0F : mask.kept;
    }
  });
  return made;
}

std::int64_t Signed(std::uint64_t bits) { return static_cast<std::int64_t>(bits); }

// z >> bits of what is kept as int64, zeros coming in.
at::Tensor ShiftedRight(const at::Tensor& z, int bits) {
  return z.bitwise_right_shift(bits).bitwise_and_(Signed(~std::uint64_t{0} >> bits));
}

// The same numbers by LibTorch's operations, on x's device.
at::Tensor MaskElsewhere(const at::Tensor& x, const Mask& mask) {
  constexpr std::int64_t kAtOnce = 1 << 24;  // of 16 bytes each
  const at::Tensor made = at::empty({x.numel()}, x.options());
  for (std::int64_t begin = 0; begin < x.numel(); begin += kAtOnce) {
    const std::int64_t count = std::min(kAtOnce, x.numel() - begin);
    at::Tensor z = at::arange(begin, begin + count, x.options().dtype(at::kLong));
    z.add_(Signed(mask.base));
    z.bitwise_xor_(ShiftedRight(z, 30)).mul_(Signed(kFirstFactor));
    z.bitwise_xor_(ShiftedRight(z, 27)).mul_(Signed(kSecondFactor));
    z.bitwise_xor_(ShiftedRight(z, 31));
    made.narrow(0, begin, count).copy_(ShiftedRight(z, 32).ge_(Signed(mask.threshold)));
  }
  return made.mul_(mask.kept).view(x.sizes());
}

}  // namespace

at::Tensor DropoutCopy(const at::Tensor& x, double probability, std::uint64_t seed) {
  const Mask mask(probability, seed);
  if (!cpu::Supported(x)) return x.mul(MaskElsewhere(x, mask));
  return x.mul(MaskHere(x.sizes(), mask).to(x.scalar_type()));
}

}  // namespace offshoot::trainer
