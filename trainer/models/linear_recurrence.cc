#include "trainer/models/linear_recurrence.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

#include "trainer/ops/autograd_support.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kBlock = 64;  // tokens; the result does not depend on it but for rounding

// What a block of n tokens needs of the decay, per head; i, j from 1 to n.
struct BlockDecay {
  at::Tensor query;    // [heads, n, 1]: exp(-decay * i), from the state before the block
  at::Tensor key;      // [heads, n, 1]: exp(-decay * (n - j)), to the state after it
  at::Tensor inner;    // [heads, n, n]: exp(-decay * (i - j)) for j <= i, else 0
  at::Tensor through;  // [heads, 1, 1]: exp(-decay * n)
};

BlockDecay MakeBlockDecay(const at::Tensor& decay, std::int64_t n) {
  const at::Tensor slope = decay.view({-1, 1, 1});
  const at::Tensor place = at::arange(1, n + 1, decay.options());
  const at::Tensor distance = place.view({1, n, 1}).sub(place.view({1, 1, n}));
  BlockDecay block;
  block.query = at::exp(slope.neg().mul(place.view({1, n, 1})));
  block.key = at::exp(slope.neg().mul(place.neg().add(static_cast<double>(n)).view({1, n, 1})));
  block.inner = at::exp(slope.neg().mul(distance.clamp_min(0.0))).tril();
  block.through = at::exp(slope.neg().mul(static_cast<double>(n)));
  return block;
}

// Decays of full blocks are made once; the last block of a row may be shorter.
class DecayTable {
 public:
  explicit DecayTable(const at::Tensor& decay) : decay_(decay) {}
  const BlockDecay& For(std::int64_t n) {
    if (n == kBlock) {
      if (!full_.query.defined()) full_ = MakeBlockDecay(decay_, n);
      return full_;
    }
    rest_ = MakeBlockDecay(decay_, n);
    return rest_;
  }

 private:
  const at::Tensor decay_;
  BlockDecay full_, rest_;
};

// [n, heads, D] of any type -> float32 [heads, n, D]
at::Tensor Heads(const at::Tensor& x, std::int64_t begin, std::int64_t end) {
  return x.slice(0, begin, end).to(at::kFloat).transpose(0, 1).contiguous();
}

at::Tensor Masked(const at::Tensor& a, const at::Tensor& b, const at::Tensor& inner) {
  return at::bmm(a, b.transpose(1, 2)).mul_(inner);
}

struct Block {
  std::int64_t begin, end;
};

std::vector<Block> Blocks(std::int64_t begin, std::int64_t end) {
  std::vector<Block> blocks;
  for (std::int64_t at = begin; at < end; at += kBlock) {
    blocks.push_back({at, std::min(at + kBlock, end)});
  }
  return blocks;
}

// One row forward; state [heads, D, D] in and out; out [T, heads, D] float32.
void RowForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Block row,
                DecayTable& table, at::Tensor& state, const at::Tensor& out) {
  for (const Block& block : Blocks(row.begin, row.end)) {
    const BlockDecay& decay = table.For(block.end - block.begin);
    const at::Tensor queries = Heads(q, block.begin, block.end);
    const at::Tensor keys = Heads(k, block.begin, block.end);
    const at::Tensor values = Heads(v, block.begin, block.end);
    at::Tensor o = at::bmm(Masked(queries, keys, decay.inner), values);
    o.baddbmm_(queries.mul(decay.query), state);
    state = at::baddbmm(state.mul(decay.through), keys.mul(decay.key).transpose(1, 2), values);
    out.slice(0, block.begin, block.end).copy_(o.transpose(0, 1));
  }
}

struct Gradients {
  at::Tensor q, k, v;  // float32 [T, heads, D]
};

void RowBackward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& grad, Block row, DecayTable& table, const Gradients& out) {
  const std::int64_t heads = q.size(1);
  const std::int64_t width = q.size(2);
  const auto options = q.options().dtype(at::kFloat);
  const std::vector<Block> blocks = Blocks(row.begin, row.end);
  // Forwards with the state of keys and values: the gradient of q.
  at::Tensor state = at::zeros({heads, width, width}, options);
  for (const Block& block : blocks) {
    const BlockDecay& decay = table.For(block.end - block.begin);
    const at::Tensor keys = Heads(k, block.begin, block.end);
    const at::Tensor values = Heads(v, block.begin, block.end);
    const at::Tensor grads = Heads(grad, block.begin, block.end);
    at::Tensor grad_q = at::bmm(Masked(grads, values, decay.inner), keys);
    grad_q.add_(at::bmm(grads, state.transpose(1, 2)).mul_(decay.query));
    state = at::baddbmm(state.mul(decay.through), keys.mul(decay.key).transpose(1, 2), values);
    out.q.slice(0, block.begin, block.end).copy_(grad_q.transpose(0, 1));
  }
  // Backwards with the state of queries and gradients: those of k and v.
  at::Tensor later = at::zeros({heads, width, width}, options);
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    const BlockDecay& decay = table.For(block->end - block->begin);
    const at::Tensor queries = Heads(q, block->begin, block->end);
    const at::Tensor keys = Heads(k, block->begin, block->end);
    const at::Tensor values = Heads(v, block->begin, block->end);
    const at::Tensor grads = Heads(grad, block->begin, block->end);
    at::Tensor grad_k = at::bmm(Masked(grads, values, decay.inner).transpose(1, 2), queries);
    grad_k.add_(at::bmm(values, later.transpose(1, 2)).mul_(decay.key));
    at::Tensor grad_v = at::bmm(Masked(queries, keys, decay.inner).transpose(1, 2), grads);
    grad_v.baddbmm_(keys.mul(decay.key), later);
    later = at::baddbmm(later.mul(decay.through), queries.mul(decay.query).transpose(1, 2), grads);
    out.k.slice(0, block->begin, block->end).copy_(grad_k.transpose(0, 1));
    out.v.slice(0, block->begin, block->end).copy_(grad_v.transpose(0, 1));
  }
}

class RecurrenceFunction : public torch::autograd::Function<RecurrenceFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& decay,
                            const std::vector<std::int64_t>& row_offsets) {
    context->save_for_backward({q, k, v, decay});
    SaveValue(context, "rows", row_offsets);
    at::Tensor out = at::zeros(q.sizes(), q.options().dtype(at::kFloat));
    DecayTable table(decay);
    for (std::size_t r = 0; r + 1 < row_offsets.size(); ++r) {
      at::Tensor state = at::zeros({q.size(1), q.size(2), q.size(2)}, out.options());
      RowForward(q, k, v, {row_offsets[r], row_offsets[r + 1]}, table, state, out);
    }
    return out.to(q.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const auto& row_offsets = LoadValue<std::vector<std::int64_t>>(context, "rows");
    const auto options = saved[0].options().dtype(at::kFloat);
    const Gradients out{at::zeros(saved[0].sizes(), options), at::zeros(saved[1].sizes(), options),
                        at::zeros(saved[2].sizes(), options)};
    DecayTable table(saved[3]);
    for (std::size_t r = 0; r + 1 < row_offsets.size(); ++r) {
      RowBackward(saved[0], saved[1], saved[2], grads[0], {row_offsets[r], row_offsets[r + 1]},
                  table, out);
    }
    const at::ScalarType type = saved[0].scalar_type();
    return {out.q.to(type), out.k.to(type), out.v.to(type), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor LinearRecurrence(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& decay, const std::vector<std::int64_t>& row_offsets) {
  return RecurrenceFunction::apply(q, k, v, decay, row_offsets);
}

at::Tensor ContinueRecurrence(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& decay, at::Tensor& state) {
  at::Tensor out = at::zeros(q.sizes(), q.options().dtype(at::kFloat));
  if (!state.defined()) state = at::zeros({q.size(1), q.size(2), q.size(2)}, out.options());
  DecayTable table(decay);
  RowForward(q, k, v, {0, q.size(0)}, table, state, out);
  return out.to(q.scalar_type());
}

}  // namespace offshoot::trainer
