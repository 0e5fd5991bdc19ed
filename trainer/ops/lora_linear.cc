#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <utility>
#include <vector>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/dropout.h"
#include "trainer/ops/ops.h"
#include "trainer/ops/products.h"

// With A, B, s of member i:  low_i = x (s A_i)^T,  y_i = x W_i^T + low_i B_i^T  in one product over
// the joined inner dimension. Backward, with g_i the gradient of y_i:  back_i = s g_i B_i,
// grad_x = sum g_i W_i + back_i A_i (one product), grad_A_i = back_i^T x, grad_B_i = g_i^T low_i.
// Saved: x (shared with whoever made it), or what it is made from again, and low [T, sum of ranks].

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Member {
  std::shared_ptr<const FrozenLinear> base;
  bool adapted = false;
  bool unread = false;
  double scaling = 1.0;
  double dropout = 0.0;
  std::uint64_t seed = 0;
};
using Members = std::vector<Member>;

at::Tensor Dropped(const at::Tensor& x, const Member& member) {
  return member.dropout > 0 ? DropoutCopy(x, member.dropout, member.seed) : x;
}

bool AnyDropout(const Members& members) {
  for (const Member& member : members) {
    if (member.adapted && member.dropout > 0) return true;
  }
  return false;
}

// Calls visit(member index, adapter index, first low column, rank) for each adapted member;
// weights are a0, b0, a1, b1, ...
template <typename F>
void ForAdapted(const Members& members, at::TensorList weights, const F& visit) {
  std::size_t adapter = 0;
  std::int64_t column = 0;
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (!members[i].adapted) continue;
    const std::int64_t rank = weights[2 * adapter].size(0);
    visit(i, adapter, column, rank);
    column += rank;
    ++adapter;
  }
}

std::int64_t TotalRank(at::TensorList weights) {
  std::int64_t total = 0;
  for (std::size_t i = 0; i < weights.size(); i += 2) total += weights[i].size(0);
  return total;
}

// All A_i below each other [sum of ranks, I], each times its scaling if `scaled`.
at::Tensor JoinedA(const Members& members, at::TensorList weights, bool scaled) {
  std::vector<at::Tensor> parts;
  ForAdapted(members, weights, [&](std::size_t i, std::size_t adapter, std::int64_t, std::int64_t) {
    const at::Tensor& a = weights[2 * adapter];
    parts.push_back(scaled ? a.mul(members[i].scaling) : a);
  });
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

bool OneScaling(const Members& members) {
  const Member* first = nullptr;
  for (const Member& member : members) {
    if (!member.adapted) continue;
    if (first != nullptr && member.scaling != first->scaling) return false;
    first = &member;
  }
  return true;
}

double FirstScaling(const Members& members) {
  for (const Member& member : members) {
    if (member.adapted) return member.scaling;
  }
  return 1.0;
}

// low [T, sum of ranks]
at::Tensor LowRankInput(const Members& members, const at::Tensor& x, at::TensorList weights) {
  const at::Tensor low = at::empty({x.size(0), TotalRank(weights)}, x.options());
  if (!AnyDropout(members)) {
    const bool one = OneScaling(members);  // then the product scales as it stores
    MultiplyInto(low, {{x, JoinedA(members, weights, !one), true}}, {},
                 one ? FirstScaling(members) : 1.0);
    return low;
  }
  ForAdapted(members, weights,
             [&](std::size_t i, std::size_t adapter, std::int64_t column, std::int64_t rank) {
               MultiplyInto(low.narrow(1, column, rank),
                            {{Dropped(x, members[i]), weights[2 * adapter], true}}, {},
                            members[i].scaling);
             });
  return low;
}

// grad_A_i and grad_B_i into their places after x's.
void AdapterGradients(const Members& members, at::TensorList weights, const variable_list& grads,
                      const at::Tensor& x, const at::Tensor& low, const at::Tensor& back,
                      variable_list& result) {
  const bool dropout = AnyDropout(members);
  const at::Tensor all_a = dropout ? at::Tensor() : MultiplyTransposed(back, x);
  ForAdapted(members, weights,
             [&](std::size_t i, std::size_t adapter, std::int64_t column, std::int64_t rank) {
               if (!grads[i].defined()) return;
               result[1 + 2 * adapter] = dropout ? MultiplyTransposed(back.narrow(1, column, rank),
                                                                      Dropped(x, members[i]))
                                                 : all_a.narrow(0, column, rank);
               result[2 + 2 * adapter] =
                   MultiplyTransposed(low.narrow(1, column, rank), grads[i]).t().contiguous();
             });
}

at::Tensor InputGradient(const Members& members, at::TensorList weights, const variable_list& grads,
                         const at::Tensor& back) {
  std::vector<WeightPart> parts;
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (grads[i].defined()) parts.push_back({grads[i], members[i].base.get()});
  }
  if (!back.defined()) return MultiplyWeightsBack(parts);
  if (!AnyDropout(members)) {
    return MultiplyWeightsBack(parts, {{back, JoinedA(members, weights, false)}});
  }
  at::Tensor grad = MultiplyWeightsBack(parts);
  ForAdapted(members, weights,
             [&](std::size_t i, std::size_t adapter, std::int64_t column, std::int64_t rank) {
               grad.add_(Dropped(Multiply({{back.narrow(1, column, rank), weights[2 * adapter]}}),
                                 members[i]));
             });
  return grad;
}

class LoraGroupFunction : public torch::autograd::Function<LoraGroupFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x,
                               at::TensorList weights, const Members& members,
                               const Remake& remake) {
    context->set_materialize_grads(false);
    const at::Tensor low = weights.empty() ? at::Tensor() : LowRankInput(members, x, weights);
    variable_list out;
    for (const Member& member : members) {
      if (member.unread)
        out.push_back(at::empty({x.size(0), member.base->out_features()}, x.options()));
      else if (!member.adapted)
        out.push_back(member.base->Forward(x));
      else
        out.emplace_back();
    }
    ForAdapted(members, weights,
               [&](std::size_t i, std::size_t adapter, std::int64_t column, std::int64_t rank) {
                 if (members[i].unread) return;
                 const Addend lora = {low.narrow(1, column, rank), weights[2 * adapter + 1], true};
                 out[i] = MultiplyWeight(x, *members[i].base, &lora);
               });
    if (!weights.empty()) {
      variable_list saved = {low};
      saved.insert(saved.end(), weights.begin(), weights.end());
      if (remake.kind == Remake::Kind::kNone) {
        saved.push_back(x);
      } else {
        saved.insert(saved.end(), remake.sources.begin(), remake.sources.end());
      }
      context->save_for_backward(std::move(saved));
    }
    context->saved_data["remake"] = static_cast<std::int64_t>(remake.kind);
    context->saved_data["weights"] = static_cast<std::int64_t>(weights.size());
    SaveValue(context, "members", members);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Members& members = LoadValue<Members>(context, "members");
    const variable_list saved = context->get_saved_variables();
    at::Tensor some;
    for (at::Tensor& grad : grads) {
      if (grad.defined()) some = grad = grad.contiguous();
    }
    const auto weight_count = static_cast<std::size_t>(context->saved_data.at("weights").toInt());
    variable_list result(1 + weight_count + 2);
    if (!some.defined()) return result;
    if (weight_count == 0) {
      if (context->needs_input_grad(0)) result[0] = InputGradient(members, {}, grads, {});
      return result;
    }
    const at::TensorList weights = at::TensorList(saved).slice(1, weight_count);
    const at::Tensor& low = saved[0];
    const Remake remake = {
        static_cast<Remake::Kind>(context->saved_data.at("remake").toInt()),
        {saved.begin() + static_cast<std::ptrdiff_t>(1 + weight_count), saved.end()}};
    const at::Tensor x =
        remake.kind == Remake::Kind::kNone ? remake.sources.at(0) : MakeAgain(remake);
    const at::Tensor back = at::empty_like(low);
    ForAdapted(
        members, weights,
        [&](std::size_t i, std::size_t adapter, std::int64_t column, std::int64_t rank) {
          const at::Tensor out = back.narrow(1, column, rank);
          if (grads[i].defined()) {
            MultiplyInto(out, {{grads[i], weights[2 * adapter + 1]}}, {}, members[i].scaling);
          } else {
            out.zero_();
          }
        });
    AdapterGradients(members, weights, grads, x, low, back, result);
    if (context->needs_input_grad(0)) {
      result[0] = InputGradient(members, weights, grads, back);
    }
    return result;
  }
};

}  // namespace

std::vector<at::Tensor> LoraLinearGroup(const at::Tensor& x, const std::vector<LoraMember>& members,
                                        const Remake& remake) {
  Members group;
  std::vector<at::Tensor> weights;
  for (const LoraMember& member : members) {
    Member& one = group.emplace_back();
    one.base = member.base;
    one.unread = member.unread;
    if (member.adapter == nullptr || !member.adapter->enabled) continue;
    one.adapted = true;
    one.scaling = member.adapter->scaling;
    one.dropout = member.adapter->dropout;
    one.seed = member.adapter->dropout_seed;
    weights.push_back(member.adapter->a);
    weights.push_back(member.adapter->b);
  }
  return LoraGroupFunction::apply(x, at::TensorList(weights), group, remake);
}

at::Tensor LoraLinear(const at::Tensor& x, const std::shared_ptr<const FrozenLinear>& base,
                      const LoraWeights* adapter, const Remake& remake) {
  return LoraLinearGroup(x, {{base, adapter}}, remake)[0];
}

}  // namespace offshoot::trainer
