#include <ATen/ops/arange.h>
#include <ATen/ops/logical_or.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>

#include <limits>

#include "trainer/models/attention.h"

namespace offshoot::trainer {

at::Tensor CachedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           double scale, std::int64_t window) {
  const std::int64_t fresh = q.size(0);
  const std::int64_t all = k.size(0);
  const std::int64_t groups = k.size(1);
  const std::int64_t repeats = q.size(1) / groups;
  // [nk, repeats, n, D] x [nk, 1, D, t]
  const at::Tensor queries = q.view({fresh, groups, repeats, q.size(2)}).permute({1, 2, 0, 3});
  const at::Tensor keys = k.permute({1, 2, 0}).unsqueeze(1);
  at::Tensor scores = at::matmul(queries, keys).to(at::kFloat).mul_(scale);
  if (fresh > 1 || window > 0) {
    const at::Tensor query_place =
        at::arange(all - fresh, all, q.options().dtype(at::kLong)).unsqueeze(1);
    const at::Tensor key_place = at::arange(all, q.options().dtype(at::kLong)).unsqueeze(0);
    at::Tensor hidden = key_place.gt(query_place);
    if (window > 0) hidden = at::logical_or(hidden, key_place.le(query_place.sub(window)));
    scores.masked_fill_(hidden, -std::numeric_limits<float>::infinity());
  }
  const at::Tensor weights = at::softmax(scores, -1).to(v.scalar_type());
  const at::Tensor values = v.permute({1, 0, 2}).unsqueeze(1);
  return at::matmul(weights, values).permute({2, 0, 1, 3}).reshape({fresh, q.size(1), v.size(2)});
}

}  // namespace offshoot::trainer
