// Weights in 4 and 8 bits, as bitsandbytes defines them, so that what is trained here fits what
// others quantise.
//
//   kNf4   blocks of 64 values in row-major order, each value one of 16 (the quantiles of a normal
//          distribution) times the block's largest magnitude. The magnitudes are quantised again:
//          less their mean, in blocks of 256, to 8 bits of bitsandbytes' dynamic code. 0.516 bytes
//          a value.
//   kInt8  round(127 w / m) with m the largest magnitude of the row. 1 byte a value.
//
// Pure; thread-safe. Quantising is on the CPU; the result can be moved.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace offshoot::trainer {

enum class Quantisation { kNone, kNf4, kInt8 };

// "none", "nf4", "int8".
const char* NameOf(Quantisation kind);
// Null for any other word.
const Quantisation* FindQuantisation(const std::string& name);

// The matrix [O, I] in its stored form. Immutable.
struct QuantisedMatrix {
  Quantisation kind = Quantisation::kNone;
  std::vector<std::int64_t> shape;
  at::Tensor
      codes;  // kNf4: uint8 [ceil(n / 2)], the first value in the high half; kInt8: int8 [O, I]
  at::Tensor scales;        // kNf4: uint8 [ceil(n / 64)]; kInt8: float32 [O]
  at::Tensor outer_scales;  // kNf4: float32 [ceil(n / 64 / 256)]
  double offset = 0.0;      // kNf4: the mean of the magnitudes

  std::int64_t bytes() const;
  QuantisedMatrix To(const at::Device& device) const;
};

// What a matrix of so many values in so many rows will take.
std::int64_t QuantisedBytes(std::int64_t count, std::int64_t rows, Quantisation kind);

// weight [O, I], float32 or bfloat16, on the CPU.
QuantisedMatrix Quantise(const at::Tensor& weight, Quantisation kind);
// [O, I]; each value is computed in float32 and rounded once to `dtype`.
at::Tensor Dequantise(const QuantisedMatrix& matrix, at::ScalarType dtype);
// `rows` of its rows from `first`, a multiple of kRowStep.
at::Tensor DequantiseRows(const QuantisedMatrix& matrix, at::ScalarType dtype, std::int64_t first,
                          std::int64_t rows);
inline constexpr std::int64_t kRowStep = 64;  // so many rows are whole blocks, whatever their width
// Of a matrix that a product needs dequantised: as much at a time. Small enough for most caches,
// and large enough that the buffer is mapped and given back (SetUpHeap).
inline constexpr std::int64_t kWidenedBytes = 8 << 20;

}  // namespace offshoot::trainer
