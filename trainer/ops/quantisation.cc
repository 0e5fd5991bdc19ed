#include "trainer/ops/quantisation.h"

#include <ATen/Parallel.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/round.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kBlock = 64;        // values with one magnitude
constexpr std::int64_t kOuterBlock = 256;  // magnitudes with one scale
constexpr std::int64_t kGrainBlocks = 512;

// bitsandbytes' get_4bit_type("nf4").
constexpr std::array<float, 16> kNf4Values = {-1.0F,
                                              -0.6961928009986877F,
                                              -0.5250730514526367F,
                                              -0.39491748809814453F,
                                              -0.28444138169288635F,
                                              -0.18477343022823334F,
                                              -0.09105003625154495F,
                                              0.0F,
                                              0.07958029955625534F,
                                              0.16093020141124725F,
                                              0.24611230194568634F,
                                              0.33791524171829224F,
                                              0.44070982933044434F,
                                              0.5626170039176941F,
                                              0.7229568362236023F,
                                              1.0F};

// bitsandbytes' create_dynamic_map(): for each of seven powers of ten the middles of 2^i equal
// parts of [0.1, 1], of both signs; and 0 and 1. Ascending.
std::array<float, 256> MakeDynamicCode() {
  std::array<float, 256> code{};
  std::size_t filled = 0;
  for (int i = 0; i < 7; ++i) {
    const int parts = 1 << i;
    const double power = std::pow(10.0, i - 6);
    const auto boundary = [&](int k) {
      // torch.linspace in float32: from the nearer end
      const float step = (1.0F - 0.1F) / static_cast<float>(parts);
      return k < (parts + 1) / 2 ? 0.1F + step * static_cast<float>(k)
                                 : 1.0F - step * static_cast<float>(parts - k);
    };
    for (int k = 0; k < parts; ++k) {
      const float middle = (boundary(k) + boundary(k + 1)) / 2.0F;
      const auto value = static_cast<float>(power) * middle;
      code[filled++] = value;
      code[filled++] = -value;
    }
  }
  code[filled++] = 0.0F;
  code[filled++] = 1.0F;
  std::sort(code.begin(), code.end());
  return code;
}

const std::array<float, 256>& DynamicCode() {
  static const std::array<float, 256> code = MakeDynamicCode();
  return code;
}

// The index of the nearest value of an ascending code; the lower of two equally near.
template <std::size_t n>
std::uint8_t Nearest(const std::array<float, n>& code, float value) {
  const auto above = std::lower_bound(code.begin(), code.end(), value);
  auto index = static_cast<std::size_t>(above - code.begin());
  if (index == n) {
    index = n - 1;
  } else if (index > 0 && value - code[index - 1] <= code[index] - value) {
    --index;
  }
  return static_cast<std::uint8_t>(index);
}

// For each value of the code but the last the largest float whose nearest it is: a value's index is
// the number of these below it. Each is a few floats from the middle of two values at most.
std::array<float, 15> MakeNf4Limits() {
  std::array<float, 15> limits{};
  for (std::size_t i = 0; i < limits.size(); ++i) {
    float limit = (kNf4Values[i] + kNf4Values[i + 1]) / 2.0F;
    while (Nearest(kNf4Values, limit) > i) limit = std::nextafter(limit, -1.0F);
    while (Nearest(kNf4Values, std::nextafter(limit, 1.0F)) <= i) {
      limit = std::nextafter(limit, 1.0F);
    }
    limits[i] = limit;
  }
  return limits;
}

const std::array<float, 15>& Nf4Limits() {
  static const std::array<float, 15> limits = MakeNf4Limits();
  return limits;
}

// Writes the codes of one block's values, scaled to [-1, 1], and returns the largest magnitude.
// NaN has code 0, as it has for Nearest.
float QuantiseBlock(const std::array<float, kBlock>& values,
                    std::array<std::int32_t, kBlock>& codes) {
  constexpr std::size_t kLanes = 8;  // several maxima at once, for the compiler to vectorise
  std::array<float, kLanes> lanes{};
  for (std::size_t i = 0; i < values.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const float magnitude = std::abs(values[i + lane]);
      lanes[lane] = lanes[lane] < magnitude ? magnitude : lanes[lane];
    }
  }
  const float largest = *std::max_element(lanes.begin(), lanes.end());
  const float inverse = largest > 0.0F ? 1.0F / largest : 0.0F;
  codes.fill(0);
  std::array<float, kBlock> scaled;
  for (std::size_t i = 0; i < values.size(); ++i) scaled[i] = values[i] * inverse;
  for (const float limit : Nf4Limits()) {
    for (std::size_t i = 0; i < scaled.size(); ++i) codes[i] += scaled[i] > limit ? 1 : 0;
  }
  return largest;
}

std::int64_t Parts(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

void QuantiseMagnitudes(const std::vector<float>& magnitudes, QuantisedMatrix& matrix) {
  const auto count = static_cast<std::int64_t>(magnitudes.size());
  double sum = 0.0;
  for (const float magnitude : magnitudes) sum += magnitude;
  const auto mean = static_cast<float>(sum / static_cast<double>(count));
  matrix.offset = mean;
  matrix.scales = at::empty({count}, at::kByte);
  matrix.outer_scales = at::empty({Parts(count, kOuterBlock)}, at::kFloat);
  auto* scales = matrix.scales.mutable_data_ptr<std::uint8_t>();
  auto* outer_scales = matrix.outer_scales.mutable_data_ptr<float>();
  for (std::int64_t begin = 0; begin < count; begin += kOuterBlock) {
    const std::int64_t end = std::min(count, begin + kOuterBlock);
    float largest = 0.0F;
    for (std::int64_t i = begin; i < end; ++i) {
      largest = std::max(largest, std::abs(magnitudes[static_cast<std::size_t>(i)] - mean));
    }
    outer_scales[begin / kOuterBlock] = largest;
    for (std::int64_t i = begin; i < end; ++i) {
      const float value = magnitudes[static_cast<std::size_t>(i)] - mean;
      scales[i] = Nearest(DynamicCode(), largest > 0.0F ? value / largest : 0.0F);
    }
  }
}

QuantisedMatrix QuantiseNf4(const at::Tensor& weight) {
  QuantisedMatrix matrix;
  const at::Tensor source = weight.contiguous();
  const std::int64_t count = source.numel();
  const std::int64_t blocks = Parts(count, kBlock);
  matrix.codes = at::empty({Parts(count, 2)}, at::kByte);
  auto* codes = matrix.codes.mutable_data_ptr<std::uint8_t>();
  std::vector<float> magnitudes(static_cast<std::size_t>(blocks));
  at::parallel_for(0, blocks, kGrainBlocks, [&](std::int64_t first, std::int64_t last) {
    std::array<float, kBlock> values{};
    std::array<std::int32_t, kBlock> indexes{};
    for (std::int64_t block = first; block < last; ++block) {
      const std::int64_t begin = block * kBlock;
      const std::int64_t size = std::min(kBlock, count - begin);
      values.fill(0.0F);
      if (source.scalar_type() == at::kFloat) {
        std::copy_n(source.const_data_ptr<float>() + begin, size, values.begin());
      } else {
        std::copy_n(source.const_data_ptr<at::BFloat16>() + begin, size, values.begin());
      }
      magnitudes[static_cast<std::size_t>(block)] = QuantiseBlock(values, indexes);
      for (std::int64_t i = 0; i < size; i += 2) {
        const auto high = static_cast<unsigned>(indexes[static_cast<std::size_t>(i)]);
        const auto low = static_cast<unsigned>(indexes[static_cast<std::size_t>(i + 1)]);
        // An odd last value stands alone: its neighbour's code is 0.
        codes[(begin + i) / 2] = static_cast<std::uint8_t>(high << 4U | (i + 1 < size ? low : 0U));
      }
    }
  });
  QuantiseMagnitudes(magnitudes, matrix);
  return matrix;
}

QuantisedMatrix QuantiseInt8(const at::Tensor& weight) {
  QuantisedMatrix matrix;
  const std::int64_t rows = weight.size(0);
  matrix.codes = at::empty(weight.sizes(), at::kChar);
  matrix.scales = at::empty({rows}, at::kFloat);
  // Row by row, so that the float32 values never stand beside the whole matrix.
  at::parallel_for(0, rows, 16, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const at::Tensor values = weight[row].to(at::kFloat).contiguous();
      const auto* from = values.const_data_ptr<float>();
      auto* to = matrix.codes.mutable_data_ptr<std::int8_t>() + row * weight.size(1);
      float largest = 0.0F;
      for (std::int64_t i = 0; i < weight.size(1); ++i) {
        largest = std::max(largest, std::abs(from[i]));
      }
      matrix.scales.mutable_data_ptr<float>()[row] = largest;
      const float factor = largest > 0.0F ? 127.0F / largest : 0.0F;
      for (std::int64_t i = 0; i < weight.size(1); ++i) {
        to[i] = static_cast<std::int8_t>(std::nearbyint(from[i] * factor));
      }
    }
  });
  return matrix;
}

constexpr float kInt8Step = 1.0F / 127.0F;

// The magnitude of each block, float32.
float MagnitudeOf(const std::uint8_t* scales, const float* outer_scales, float offset,
                  std::int64_t block) {
  return DynamicCode()[scales[block]] * outer_scales[block / kOuterBlock] + offset;
}

template <typename T>
void DequantiseNf4(const QuantisedMatrix& matrix, T* out, std::int64_t first_row,
                   std::int64_t count) {
  const std::int64_t first_block = first_row * matrix.shape[1] / kBlock;
  const auto* codes = matrix.codes.const_data_ptr<std::uint8_t>() + first_block * (kBlock / 2);
  const auto* scales = matrix.scales.const_data_ptr<std::uint8_t>();
  const auto* outer_scales = matrix.outer_scales.const_data_ptr<float>();
  const auto offset = static_cast<float>(matrix.offset);
  at::parallel_for(
      0, Parts(count, kBlock), kGrainBlocks, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t block = first; block < last; ++block) {
          const float magnitude = MagnitudeOf(scales, outer_scales, offset, first_block + block);
          std::array<T, 16> values;  // of this block, rounded once
          for (std::size_t i = 0; i < 16; ++i) {
            values[i] = static_cast<T>(kNf4Values[i] * magnitude);
          }
          const std::int64_t begin = block * kBlock;
          const std::int64_t size = std::min(kBlock, count - begin);
          for (std::int64_t i = 0; i < size / 2; ++i) {
            const unsigned pair = codes[begin / 2 + i];
            out[begin + 2 * i] = values[pair >> 4U];
            out[begin + 2 * i + 1] = values[pair & 15U];
          }
          if (size % 2 == 1) out[begin + size - 1] = values[codes[(begin + size) / 2] >> 4U];
        }
      });
}

template <typename T>
void DequantiseInt8(const QuantisedMatrix& matrix, T* out, std::int64_t first_row,
                    std::int64_t rows) {
  const std::int64_t columns = matrix.shape[1];
  const auto* codes = matrix.codes.const_data_ptr<std::int8_t>() + first_row * columns;
  const auto* scales = matrix.scales.const_data_ptr<float>() + first_row;
  const std::int64_t grain =
      std::max<std::int64_t>(1, kGrainBlocks * kBlock / std::max<std::int64_t>(1, columns));
  at::parallel_for(0, rows, grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      const float step = scales[row] * kInt8Step;
      for (std::int64_t i = row * columns; i < (row + 1) * columns; ++i) {
        out[i] = static_cast<T>(static_cast<float>(codes[i]) * step);
      }
    }
  });
}

// The same with LibTorch's operations, on any device.
at::Tensor DequantiseElsewhere(const QuantisedMatrix& matrix, at::ScalarType dtype) {
  if (matrix.kind == Quantisation::kInt8) {
    const at::Tensor steps = matrix.scales.mul(kInt8Step).unsqueeze(1);
    return matrix.codes.to(at::kFloat).mul_(steps).to(dtype);
  }
  const std::int64_t count = matrix.shape[0] * matrix.shape[1];
  const auto options = at::TensorOptions().dtype(at::kFloat).device(matrix.codes.device());
  const at::Tensor values = at::tensor(at::ArrayRef<float>(kNf4Values), at::kFloat).to(options);
  const at::Tensor code = at::tensor(at::ArrayRef<float>(DynamicCode()), at::kFloat).to(options);
  const at::Tensor outer =
      matrix.outer_scales.repeat_interleave(kOuterBlock).slice(0, 0, matrix.scales.size(0));
  const at::Tensor magnitudes = code.index_select(0, matrix.scales.to(at::kInt))
                                    .mul_(outer)
                                    .add_(static_cast<float>(matrix.offset));
  const at::Tensor indexes = at::stack({at::bitwise_right_shift(matrix.codes, at::Scalar(4)),
                                        at::bitwise_and(matrix.codes, at::Scalar(15))},
                                       1)
                                 .view({-1})
                                 .slice(0, 0, count);
  return values.index_select(0, indexes.to(at::kInt))
      .mul_(magnitudes.repeat_interleave(kBlock).slice(0, 0, count))
      .to(dtype)
      .view(matrix.shape);
}

}  // namespace

const char* NameOf(Quantisation kind) {
  switch (kind) {
    case Quantisation::kNone:
      return "none";
    case Quantisation::kNf4:
      return "nf4";
    case Quantisation::kInt8:
      return "int8";
  }
  return "none";
}

const Quantisation* FindQuantisation(const std::string& name) {
  static constexpr std::array<Quantisation, 3> kAll = {Quantisation::kNone, Quantisation::kNf4,
                                                       Quantisation::kInt8};
  const auto* found = std::find_if(kAll.begin(), kAll.end(),
                                   [&](Quantisation kind) { return name == NameOf(kind); });
  return found == kAll.end() ? nullptr : found;
}

std::int64_t QuantisedMatrix::bytes() const {
  std::int64_t total = 0;
  for (const at::Tensor* part : {&codes, &scales, &outer_scales}) {
    if (part->defined()) total += static_cast<std::int64_t>(part->nbytes());
  }
  return total;
}

QuantisedMatrix QuantisedMatrix::To(const at::Device& device) const {
  QuantisedMatrix moved = *this;
  for (at::Tensor* part : {&moved.codes, &moved.scales, &moved.outer_scales}) {
    if (part->defined()) *part = part->to(device);
  }
  return moved;
}

std::int64_t QuantisedBytes(std::int64_t count, std::int64_t rows, Quantisation kind) {
  if (kind == Quantisation::kInt8) return count + rows * 4;
  const std::int64_t blocks = Parts(count, kBlock);
  return Parts(count, 2) + blocks + Parts(blocks, kOuterBlock) * 4;
}

QuantisedMatrix Quantise(const at::Tensor& weight, Quantisation kind) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_cpu() && kind != Quantisation::kNone &&
                  (weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kBFloat16),
              "a matrix in float32 or bfloat16 is quantised");
  QuantisedMatrix matrix = kind == Quantisation::kNf4 ? QuantiseNf4(weight) : QuantiseInt8(weight);
  matrix.kind = kind;
  matrix.shape = weight.sizes().vec();
  return matrix;
}

at::Tensor Dequantise(const QuantisedMatrix& matrix, at::ScalarType dtype) {
  return DequantiseRows(matrix, dtype, 0, matrix.shape[0]);
}

at::Tensor DequantiseRows(const QuantisedMatrix& matrix, at::ScalarType dtype, std::int64_t first,
                          std::int64_t rows) {
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, "float32 or bfloat16 is wanted");
  TORCH_CHECK(first >= 0 && first % kRowStep == 0 && rows >= 0 && first + rows <= matrix.shape[0],
              "rows of the matrix are wanted, from a multiple of ", kRowStep);
  if (!matrix.codes.is_cpu()) return DequantiseElsewhere(matrix, dtype).narrow(0, first, rows);
  at::Tensor result = at::empty({rows, matrix.shape[1]}, at::TensorOptions().dtype(dtype));
  const auto fill = [&](auto* out) {
    matrix.kind == Quantisation::kNf4 ? DequantiseNf4(matrix, out, first, result.numel())
                                      : DequantiseInt8(matrix, out, first, rows);
  };
  if (dtype == at::kFloat) {
    fill(result.mutable_data_ptr<float>());
  } else {
    fill(result.mutable_data_ptr<at::BFloat16>());
  }
  return result;
}

}  // namespace offshoot::trainer
