#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <c10/util/Exception.h>

#include <limits>
#include <vector>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Geometry {
  std::vector<std::int64_t> row_offsets;
  double scale;
  std::int64_t window;
};

// [L, heads, D] -> float32 [nk, nh / nk, L, D]
at::Tensor ByKeyHead(const at::Tensor& row, std::int64_t key_heads) {
  const auto split = row.transpose(0, 1).to(at::kFloat);
  return split.reshape({key_heads, row.size(1) / key_heads, row.size(0), row.size(2)});
}

// The inverse of ByKeyHead.
at::Tensor ByToken(const at::Tensor& heads, at::ScalarType dtype) {
  return heads.flatten(0, 1).transpose(0, 1).to(dtype);
}

// Scaled scores [nk, g, L, L] with everything a query may not see at -infinity.
at::Tensor Scores(const at::Tensor& q, const at::Tensor& k, const Geometry& geometry) {
  const std::int64_t length = q.size(2);
  const at::Tensor index = at::arange(length, q.options().dtype(at::kLong));
  const at::Tensor distance = index.unsqueeze(1) - index.unsqueeze(0);
  at::Tensor hidden = distance.lt(0);
  if (geometry.window > 0) hidden = hidden.logical_or(distance.ge(geometry.window));
  return at::matmul(q, k.transpose(-1, -2))
      .mul_(geometry.scale)
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

class CausalAttentionFunction : public torch::autograd::Function<CausalAttentionFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const Geometry& geometry) {
    const auto float_options = q.options().dtype(at::kFloat);
    at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
    at::Tensor log_sums = at::empty({q.size(1), q.size(0)}, float_options);
    for (std::size_t r = 0; r + 1 < geometry.row_offsets.size(); ++r) {
      const std::int64_t begin = geometry.row_offsets[r];
      const std::int64_t length = geometry.row_offsets[r + 1] - begin;
      if (length == 0) continue;
      const std::int64_t key_heads = k.size(1);
      const at::Tensor queries = ByKeyHead(q.narrow(0, begin, length), key_heads);
      const at::Tensor keys = ByKeyHead(k.narrow(0, begin, length), key_heads);
      const at::Tensor values = ByKeyHead(v.narrow(0, begin, length), key_heads);
      at::Tensor scores = Scores(queries, keys, geometry);
      const at::Tensor sums = at::logsumexp(scores, -1, /*keepdim=*/true);
      const at::Tensor weights = scores.sub_(sums).exp_();
      out.narrow(0, begin, length).copy_(ByToken(at::matmul(weights, values), q.scalar_type()));
      log_sums.narrow(1, begin, length).copy_(sums.flatten(0, 1).squeeze(-1));
    }
    context->save_for_backward({q, k, v, out, log_sums});
    SaveValue(context, "geometry", geometry);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3];
    const Geometry& geometry = LoadValue<Geometry>(context, "geometry");
    const std::int64_t key_heads = k.size(1);
    at::Tensor grad_q = at::empty(q.sizes(), q.options());
    at::Tensor grad_k = at::empty(k.sizes(), k.options());
    at::Tensor grad_v = at::empty(v.sizes(), v.options());
    for (std::size_t r = 0; r + 1 < geometry.row_offsets.size(); ++r) {
      const std::int64_t begin = geometry.row_offsets[r];
      const std::int64_t length = geometry.row_offsets[r + 1] - begin;
      if (length == 0) continue;
      const auto row = [&](const at::Tensor& t) {
        return ByKeyHead(t.narrow(0, begin, length), key_heads);
      };
      const at::Tensor queries = row(q), keys = row(k), values = row(v), grad = row(grads[0]);
      const at::Tensor sums =
          saved[4].narrow(1, begin, length).reshape({key_heads, q.size(1) / key_heads, length, 1});
      const at::Tensor weights = Scores(queries, keys, geometry).sub_(sums).exp_();
      const at::Tensor delta = grad.mul(row(out)).sum(-1, /*keepdim=*/true);
      const at::Tensor grad_scores =
          at::matmul(grad, values.transpose(-1, -2)).sub_(delta).mul_(weights).mul_(geometry.scale);
      const auto store = [&](const at::Tensor& to, const at::Tensor& from) {
        to.narrow(0, begin, length).copy_(ByToken(from, to.scalar_type()));
      };
      store(grad_q, at::matmul(grad_scores, keys));
      store(grad_k, at::matmul(grad_scores.transpose(-1, -2), queries).sum(1, true));
      store(grad_v, at::matmul(weights.transpose(-1, -2), grad).sum(1, true));
    }
    return {grad_q, grad_k, grad_v, at::Tensor()};
  }
};

}  // namespace

at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::vector<std::int64_t>& row_offsets, double scale,
                           std::int64_t window) {
  TORCH_CHECK(q.size(1) % k.size(1) == 0, "query heads must be a multiple of key heads");
  TORCH_CHECK(!row_offsets.empty() && row_offsets.front() == 0 && row_offsets.back() == q.size(0),
              "row offsets must cover all tokens");
  return CausalAttentionFunction::apply(q, k, v, Geometry{row_offsets, scale, window});
}

}  // namespace offshoot::trainer
