// Random numbers that are a pure function of a key and a counter, the same on every machine.
//
//   key        = Mix(Mix(seed) ^ Mix(stream * kGolden + 1))
//   Number(i)  = Mix(key + i * kGolden)
//   Mix        = the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom
//                Number Generators, 2014)
//   Below(i,n) = high 64 bits of Number(i) * n (a bias below n / 2^64)
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace offshoot::trainer {

class CounterRandom {
 public:
  CounterRandom(std::uint64_t seed, std::uint64_t stream)
      : key_(Mix(Mix(seed) ^ Mix(stream * kGolden + 1))) {}

  std::uint64_t Number(std::uint64_t counter) const { return Mix(key_ + counter * kGolden); }
  std::uint64_t Below(std::uint64_t counter, std::uint64_t bound) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<std::uint64_t>((static_cast<Wide>(Number(counter)) * bound) >> 64);
  }
  // Fisher-Yates from the end: element i changes places with element Below(i, i + 1).
  template <typename T>
  void Shuffle(std::vector<T>* items) const {
    for (std::size_t i = items->size(); i-- > 1;) {
      std::swap((*items)[i], (*items)[Below(i, i + 1)]);
    }
  }

  static std::uint64_t Mix(std::uint64_t x) {
    x += kGolden;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  }

 private:
  static constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ull;
  std::uint64_t key_;
};

}  // namespace offshoot::trainer
