// Tensors that lie in mapped files, a piece at a time, so that they never all are in memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>

#include <algorithm>
#include <cstdint>

#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

inline constexpr std::int64_t kPassingBytes = 8 << 20;

// Calls visit(first, rows) for about kPassingBytes of the tensor's rows at a time and gives their
// pages back after it. values has at least one dimension; release may be empty.
template <typename Visit>
void VisitPieces(const at::Tensor& values, const PageRelease& release, const Visit& visit) {
  const std::int64_t rows = values.size(0);
  if (values.numel() == 0) return;
  const std::int64_t row_bytes = static_cast<std::int64_t>(values.nbytes()) / rows;
  const std::int64_t step = std::max<std::int64_t>(1, kPassingBytes / row_bytes);
  for (std::int64_t first = 0; first < rows; first += step) {
    const std::int64_t count = std::min(step, rows - first);
    visit(first, values.narrow(0, first, count));
    if (release) {
      release(static_cast<std::size_t>(first * row_bytes),
              static_cast<std::size_t>((first + count) * row_bytes));
    }
  }
}

// at::equal for two of them.
inline bool EqualInPieces(const at::Tensor& a, const PageRelease& release_a, const at::Tensor& b,
                          const PageRelease& release_b) {
  if (a.sizes() != b.sizes() || a.dim() == 0) return at::equal(a, b);
  bool equal = true;
  VisitPieces(a, release_a, [&](std::int64_t first, const at::Tensor& rows) {
    equal = equal && at::equal(rows, b.narrow(0, first, rows.size(0)));
    if (release_b) release_b(0, b.nbytes());
  });
  return equal;
}

}  // namespace offshoot::trainer
