#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/cpu/kernels.h"
#include "trainer/ops/cpu/parallel.h"
#include "trainer/ops/flash_attention.h"
#include "trainer/ops/ops.h"
#include "trainer/ops/products.h"
#include "trainer/ops/tensor_bytes.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Geometry = AttentionGeometry;
using Gradients = AttentionGradients;

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

Attended ForwardElsewhere(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const Geometry& geometry) {
  Attended attended;
  attended.out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  attended.log_sums = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
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
    attended.out.narrow(0, begin, length)
        .copy_(ByToken(at::matmul(weights, values), q.scalar_type()));
    attended.log_sums.narrow(1, begin, length).copy_(sums.flatten(0, 1).squeeze(-1));
  }
  return attended;
}

Gradients BackwardElsewhere(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const Attended& attended, const at::Tensor& grad_out,
                            const Geometry& geometry) {
  const std::int64_t key_heads = k.size(1);
  const Gradients result = {at::empty(q.sizes(), q.options()), at::empty(k.sizes(), k.options()),
                            at::empty(v.sizes(), v.options())};
  for (std::size_t r = 0; r + 1 < geometry.row_offsets.size(); ++r) {
    const std::int64_t begin = geometry.row_offsets[r];
    const std::int64_t length = geometry.row_offsets[r + 1] - begin;
    if (length == 0) continue;
    const auto row = [&](const at::Tensor& t) {
      return ByKeyHead(t.narrow(0, begin, length), key_heads);
    };
    const at::Tensor queries = row(q), keys = row(k), values = row(v), grad = row(grad_out);
    const at::Tensor sums = attended.log_sums.narrow(1, begin, length)
                                .reshape({key_heads, q.size(1) / key_heads, length, 1});
    const at::Tensor weights = Scores(queries, keys, geometry).sub_(sums).exp_();
    const at::Tensor delta = grad.mul(row(attended.out)).sum(-1, /*keepdim=*/true);
    const at::Tensor grad_scores =
        at::matmul(grad, values.transpose(-1, -2)).sub_(delta).mul_(weights).mul_(geometry.scale);
    const auto store = [&](const at::Tensor& to, const at::Tensor& from) {
      to.narrow(0, begin, length).copy_(ByToken(from, to.scalar_type()));
    };
    store(result.q, at::matmul(grad_scores, keys));
    store(result.k, at::matmul(grad_scores.transpose(-1, -2), queries).sum(1, true));
    store(result.v, at::matmul(weights.transpose(-1, -2), grad).sum(1, true));
  }
  return result;
}

// What the kernels read: heads contiguous inside a token, an even width where pairs are multiplied
// (a zero column changes no score and no output that is kept), a type that the products take.
at::Tensor Readable(const at::Tensor& t) {
  if (t.scalar_type() == at::kBFloat16 && !cpu::Kernels().bf16_products) {
    return t.to(at::kFloat).contiguous();
  }
  if (t.size(2) % 2 != 0 && t.scalar_type() == at::kBFloat16) {
    at::Tensor padded = at::zeros({t.size(0), t.size(1), t.size(2) + 1}, t.options());
    padded.narrow(2, 0, t.size(2)).copy_(t);
    return padded;
  }
  return t.stride(2) == 1 && t.stride(1) == t.size(2) ? t : t.contiguous();
}

cpu::Attention Describe(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const Geometry& geometry) {
  cpu::Attention a = {};
  a.type = cpu::ElementOf(q.scalar_type());
  a.tokens = q.size(0);
  a.query_heads = q.size(1);
  a.key_heads = k.size(1);
  a.width = q.size(2);
  a.value_width = v.size(2);
  a.row_offsets = geometry.row_offsets.data();
  for (std::size_t r = 0; r + 1 < geometry.row_offsets.size(); ++r) {
    a.longest_row = std::max(a.longest_row, geometry.row_offsets[r + 1] - geometry.row_offsets[r]);
  }
  a.window = geometry.window;
  a.scale = static_cast<float>(geometry.scale);
  a.q = MutableBytes(q);
  a.k = MutableBytes(k);
  a.v = MutableBytes(v);
  a.q_token_stride = q.stride(0) * q.element_size();
  a.k_token_stride = k.stride(0) * k.element_size();
  a.v_token_stride = v.stride(0) * v.element_size();
  return a;
}

void RunTasks(const cpu::Attention& a, const Geometry& geometry, bool backward) {
  const cpu::KernelTable& kernels = cpu::Kernels();
  const auto rows = static_cast<std::int64_t>(geometry.row_offsets.size()) - 1;
  cpu::ParallelTasks(rows * a.key_heads, kernels.attention_scratch(a, backward),
                     [&](std::int64_t begin, std::int64_t end, void* scratch) {
                       backward ? kernels.attention_backward(a, begin, end, scratch)
                                : kernels.attention_forward(a, begin, end, scratch);
                     },
                     {.most = 1});  // rows may be of any length
}

Attended Forward(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in,
                 const Geometry& geometry) {
  if (TakesFlashAttention(q_in, v_in)) return FlashForward(q_in, k_in, v_in, geometry);
  if (!cpu::Supported(q_in)) return ForwardElsewhere(q_in, k_in, v_in, geometry);
  const at::Tensor q = Readable(q_in), k = Readable(k_in), v = Readable(v_in);
  Attended attended;
  attended.out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  attended.log_sums = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  cpu::Attention a = Describe(q, k, v, geometry);
  a.out = MutableBytes(attended.out);
  a.log_sums = attended.log_sums.mutable_data_ptr<float>();
  RunTasks(a, geometry, /*backward=*/false);
  attended.out = attended.out.narrow(2, 0, v_in.size(2)).to(q_in.scalar_type()).contiguous();
  return attended;
}

Gradients Backward(const at::Tensor& q_in, const at::Tensor& k_in, const at::Tensor& v_in,
                   const Attended& attended, const at::Tensor& grad_out, const Geometry& geometry) {
  if (TakesFlashAttention(q_in, v_in)) {
    return FlashBackward(q_in, k_in, v_in, attended, grad_out, geometry);
  }
  if (!cpu::Supported(q_in)) {
    return BackwardElsewhere(q_in, k_in, v_in, attended, grad_out, geometry);
  }
  const at::Tensor q = Readable(q_in), k = Readable(k_in), v = Readable(v_in);
  const at::Tensor out = Readable(attended.out).contiguous();
  const at::Tensor grad = Readable(grad_out).contiguous();
  const Gradients result = {at::empty(q.sizes(), q.options()), at::empty(k.sizes(), k.options()),
                            at::empty(v.sizes(), v.options())};
  cpu::Attention a = Describe(q, k, v, geometry);
  a.out = MutableBytes(out);
  a.log_sums = attended.log_sums.mutable_data_ptr<float>();
  a.grad_out = MutableBytes(grad);
  a.grad_q = MutableBytes(result.q);
  a.grad_k = MutableBytes(result.k);
  a.grad_v = MutableBytes(result.v);
  RunTasks(a, geometry, /*backward=*/true);
  const auto as = [](const at::Tensor& made, const at::Tensor& like) {
    return made.narrow(2, 0, like.size(2)).to(like.scalar_type());
  };
  return {as(result.q, q_in), as(result.k, k_in), as(result.v, v_in)};
}

class CausalAttentionFunction : public torch::autograd::Function<CausalAttentionFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const Geometry& geometry) {
    const Attended attended = Forward(q, k, v, geometry);
    context->save_for_backward(
        {q, k, v, attended.out, attended.log_sums, attended.random_state, attended.unused});
    SaveValue(context, "geometry", geometry);
    return attended.out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    Gradients result =
        Backward(saved[0], saved[1], saved[2], {saved[3], saved[4], saved[5], saved[6]}, grads[0],
                 LoadValue<Geometry>(context, "geometry"));
    return {std::move(result.q), std::move(result.k), std::move(result.v), at::Tensor()};
  }
};

}  // namespace

at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::vector<std::int64_t>& row_offsets, double scale,
                           std::int64_t window) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && q.size(0) == k.size(0) &&
                  k.size(0) == v.size(0) && q.size(2) == k.size(2) && k.size(1) == v.size(1) &&
                  q.scalar_type() == k.scalar_type() && k.scalar_type() == v.scalar_type(),
              "attention's shapes and types must agree");
  TORCH_CHECK(q.size(1) % k.size(1) == 0, "query heads must be a multiple of key heads");
  TORCH_CHECK(!row_offsets.empty() && row_offsets.front() == 0 && row_offsets.back() == q.size(0),
              "row offsets must cover all tokens");
  return CausalAttentionFunction::apply(q, k, v, Geometry{row_offsets, scale, window});
}

}  // namespace offshoot::trainer
