#include "trainer/ops/flash_attention.h"

#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "trainer/ops/to_device.h"

namespace offshoot::trainer {
namespace {

constexpr std::int64_t kWidest = 256;
constexpr std::int64_t kWidthStep = 8;

// The geometry as the calls want it.
struct Rows {
  at::Tensor offsets;  // int32 [rows + 1] on the device
  std::int64_t longest = 0;
  std::optional<std::int64_t> before;  // keys that a query sees before its own

  Rows(const AttentionGeometry& geometry, const at::Device& device) {
    const std::vector<std::int64_t>& all = geometry.row_offsets;
    const at::Tensor made = at::empty({static_cast<std::int64_t>(all.size())}, at::kInt);
    std::copy(all.begin(), all.end(), made.mutable_data_ptr<std::int32_t>());
    offsets = ToDevice(made, device);
    for (std::size_t r = 0; r + 1 < all.size(); ++r) {
      longest = std::max(longest, all[r + 1] - all[r]);
    }
    if (geometry.window > 0) before = geometry.window - 1;
  }
};

// One width for queries, keys and values, as the kernels want it: a zero column changes no score
// and no output that is kept.
std::int64_t CommonWidth(const at::Tensor& q, const at::Tensor& v) {
  const std::int64_t width = std::max(q.size(2), v.size(2));
  return (width + kWidthStep - 1) / kWidthStep * kWidthStep;
}

at::Tensor Widened(const at::Tensor& t, std::int64_t width) {
  return t.size(2) == width ? t.contiguous() : at::constant_pad_nd(t, {0, width - t.size(2)});
}

// The device's kind and how LibTorch was built decide; asking costs one small launch.
bool DeviceHasFlashAttention(const at::Device& device) {
  try {
    const at::Tensor one =
        at::zeros({1, 1, kWidthStep}, at::TensorOptions(at::kBFloat16).device(device));
    FlashForward(one, one, one, {{0, 1}, 1.0, 0});
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

}  // namespace

bool TakesFlashAttention(const at::Tensor& q, const at::Tensor& v) {
  const bool fits = q.is_cuda() &&
                    (q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf) &&
                    CommonWidth(q, v) <= kWidest;
  if (!fits) return false;
  static const bool there = DeviceHasFlashAttention(q.device());  // a process has one device
  return there;
}

Attended FlashForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const AttentionGeometry& geometry) {
  const Rows rows(geometry, q.device());
  const std::int64_t width = CommonWidth(q, v);
  Attended attended;
  std::tie(attended.out, attended.log_sums, attended.random_state, attended.unused, std::ignore) =
      at::_flash_attention_forward(Widened(q, width), Widened(k, width), Widened(v, width),
                                   rows.offsets, rows.offsets, rows.longest, rows.longest,
                                   /*dropout_p=*/0.0, /*is_causal=*/true,
                                   /*return_debug_mask=*/false, geometry.scale, rows.before);
  if (width != v.size(2)) attended.out = attended.out.narrow(2, 0, v.size(2)).contiguous();
  return attended;
}

AttentionGradients FlashBackward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const Attended& attended, const at::Tensor& grad_out,
                                 const AttentionGeometry& geometry) {
  const Rows rows(geometry, q.device());
  const std::int64_t width = CommonWidth(q, v);
  const auto [grad_q, grad_k, grad_v] = at::_flash_attention_backward(
      Widened(grad_out, width), Widened(q, width), Widened(k, width), Widened(v, width),
      Widened(attended.out, width), attended.log_sums, rows.offsets, rows.offsets, rows.longest,
      rows.longest, /*dropout_p=*/0.0, /*is_causal=*/true, attended.random_state, attended.unused,
      geometry.scale, rows.before);
  return {grad_q.narrow(2, 0, q.size(2)), grad_k.narrow(2, 0, k.size(2)),
          grad_v.narrow(2, 0, v.size(2))};
}

}  // namespace offshoot::trainer
