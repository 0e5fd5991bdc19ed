#include "trainer/models/grouped_experts.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <memory>
#include <utility>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/dropout.h"
#include "trainer/ops/products.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Where an expert's adapter is in the list of adapter tensors, and how it is applied.
struct ExpertAdapter {
  int first = -1;  // index of A, B follows; -1: none
  double scaling = 1.0;
  double dropout = 0.0;
  std::uint64_t seed = 0;
};

enum Part { kGate, kUp, kDown };

// The tokens of one expert with work: slots [begin, end) of the sorted order.
struct Group {
  const Expert* expert = nullptr;
  std::array<ExpertAdapter, 3> adapters;
  std::int64_t begin = 0, end = 0;
};

struct Plan {
  std::vector<Group> groups;
  at::Tensor tokens;  // int64 [T * K]: the token of each slot, sorted by expert
  at::Tensor picks;   // int64 [T * K]: its place in the flattened [T, K]
};

const Projection& PartOf(const Expert& expert, int part) {
  return part == kGate ? expert.gate : part == kUp ? expert.up : expert.down;
}

// Counting sort of the picks by expert; stable, so the order is the same everywhere.
std::shared_ptr<Plan> MakePlan(const std::vector<Expert>& all, const at::Tensor& experts,
                               const at::Device& device) {
  const at::Tensor choice = experts.to(at::kCPU).contiguous();
  const std::int64_t* chosen = choice.const_data_ptr<std::int64_t>();
  const std::int64_t per_token = choice.size(1);
  const std::int64_t slots = choice.numel();
  std::vector<std::int64_t> offsets(all.size() + 1, 0);
  for (std::int64_t i = 0; i < slots; ++i) ++offsets[static_cast<std::size_t>(chosen[i]) + 1];
  for (std::size_t e = 0; e < all.size(); ++e) offsets[e + 1] += offsets[e];
  auto plan = std::make_shared<Plan>();
  for (std::size_t e = 0; e < all.size(); ++e) {
    if (offsets[e] == offsets[e + 1]) continue;
    Group group;
    group.expert = &all[e];
    group.begin = offsets[e];
    group.end = offsets[e + 1];
    plan->groups.push_back(group);
  }
  at::Tensor tokens = at::empty({slots}, at::kLong);
  at::Tensor picks = at::empty({slots}, at::kLong);
  auto* token = tokens.mutable_data_ptr<std::int64_t>();
  auto* pick = picks.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < slots; ++i) {
    const std::int64_t slot = offsets[static_cast<std::size_t>(chosen[i])]++;
    token[slot] = i / per_token;
    pick[slot] = i;
  }
  plan->tokens = tokens.to(device);
  plan->picks = picks.to(device);
  return plan;
}

at::Tensor Dropped(const at::Tensor& x, const ExpertAdapter& adapter) {
  return adapter.dropout > 0 ? DropoutCopy(x, adapter.dropout, adapter.seed) : x;
}

// One matrix of one expert on its tokens x [n, in].
at::Tensor Product(const Group& group, int part, const at::Tensor& x,
                   const variable_list& adapters) {
  const FrozenLinear& base = *PartOf(*group.expert, part).base;
  const ExpertAdapter& adapter = group.adapters[static_cast<std::size_t>(part)];
  if (adapter.first < 0) return base.Forward(x);
  const auto first = static_cast<std::size_t>(adapter.first);
  const at::Tensor low =
      Multiply({{Dropped(x, adapter), adapters[first], true}}, {}, adapter.scaling);
  return Multiply({{x, base.Weight(), true}, {low, adapters[first + 1], true}}, base.Bias());
}

// Appends what gives the gradient of x when summed; sets the gradients of the part's adapter. With
// dropout, the low-rank path's share is masked and goes to `masked` instead.
void ProductBackward(const Group& group, int part, const at::Tensor& x, const at::Tensor& grad,
                     const variable_list& adapters, variable_list& adapter_grads,
                     std::vector<Addend>& addends, std::vector<at::Tensor>& masked) {
  addends.push_back({grad, PartOf(*group.expert, part).base->Weight()});
  const ExpertAdapter& adapter = group.adapters[static_cast<std::size_t>(part)];
  if (adapter.first < 0) return;
  const auto first = static_cast<std::size_t>(adapter.first);
  const at::Tensor& a = adapters[first];
  const at::Tensor& b = adapters[first + 1];
  const at::Tensor dropped = Dropped(x, adapter);
  const at::Tensor low = Multiply({{dropped, a, true}}, {}, adapter.scaling);
  const at::Tensor back = Multiply({{grad, b}}, {}, adapter.scaling);
  adapter_grads[first] = MultiplyTransposed(back, dropped);
  adapter_grads[first + 1] = MultiplyTransposed(low, grad).t().contiguous();
  if (adapter.dropout > 0) {
    masked.push_back(Dropped(Multiply({{back, a}}), adapter));
  } else {
    addends.push_back({back, a});
  }
}

at::Tensor InputGradient(const std::vector<Addend>& addends,
                         const std::vector<at::Tensor>& masked) {
  at::Tensor grad = Multiply(addends);
  for (const at::Tensor& part : masked) grad.add_(part);
  return grad;
}

class ExpertsFunction : public torch::autograd::Function<ExpertsFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weights, at::TensorList adapter_list,
                            const std::shared_ptr<Plan>& plan) {
    const variable_list adapters(adapter_list.begin(), adapter_list.end());
    const at::Tensor slot_weights = weights.view({-1}).index_select(0, plan->picks);
    at::Tensor sum = at::zeros(x.sizes(), x.options().dtype(at::kFloat));
    variable_list saved = {x, weights};
    for (const Group& group : plan->groups) {
      const at::Tensor tokens = plan->tokens.slice(0, group.begin, group.end);
      const at::Tensor rows = x.index_select(0, tokens);
      const at::Tensor gate = Product(group, kGate, rows, adapters);
      const at::Tensor up = Product(group, kUp, rows, adapters);
      // weight * down(h) = down(weight * h): nothing follows the product then, and the weight's
      // gradient needs no product of its own.
      const at::Tensor weight = slot_weights.slice(0, group.begin, group.end).unsqueeze(1);
      const at::Tensor h = SwiGlu(gate, up).mul(weight).to(x.scalar_type());
      sum.index_add_(0, tokens, Product(group, kDown, h, adapters).to(at::kFloat));
      saved.push_back(gate);
      saved.push_back(up);
    }
    saved.insert(saved.end(), adapters.begin(), adapters.end());
    context->save_for_backward(std::move(saved));
    SaveValue(context, "plan", plan);
    return sum.to(x.scalar_type());
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto plan = LoadValue<std::shared_ptr<Plan>>(context, "plan");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weights = saved[1];
    const std::size_t inner = 2;  // gate and up of each group follow, then the adapters
    const variable_list adapters(
        saved.begin() + static_cast<std::ptrdiff_t>(inner + 2 * plan->groups.size()), saved.end());
    variable_list adapter_grads(adapters.size());
    const at::Tensor slot_weights = weights.view({-1}).index_select(0, plan->picks);
    const at::Tensor grad = grads[0].contiguous();
    at::Tensor grad_x = at::zeros(x.sizes(), x.options().dtype(at::kFloat));
    at::Tensor grad_weights = at::zeros({weights.numel()}, weights.options());
    for (std::size_t i = 0; i < plan->groups.size(); ++i) {
      const Group& group = plan->groups[i];
      const at::Tensor tokens = plan->tokens.slice(0, group.begin, group.end);
      const at::Tensor rows = x.index_select(0, tokens);
      const at::Tensor& gate = saved[inner + 2 * i];
      const at::Tensor& up = saved[inner + 2 * i + 1];
      const at::Tensor weight = slot_weights.slice(0, group.begin, group.end).unsqueeze(1);
      const at::Tensor grad_y = grad.index_select(0, tokens);
      // silu(g) = g * s(g); its slope is s(g) * (1 + g * (1 - s(g))). In float32.
      const at::Tensor g = gate.to(at::kFloat);
      const at::Tensor u = up.to(at::kFloat);
      const at::Tensor s = at::sigmoid(g);
      const at::Tensor silu = g.mul(s);
      const at::Tensor h = silu.mul(u);
      const at::Tensor weighted = h.mul(weight).to(x.scalar_type());
      std::vector<Addend> addends;
      std::vector<at::Tensor> masked;
      ProductBackward(group, kDown, weighted, grad_y, adapters, adapter_grads, addends, masked);
      const at::Tensor grad_weighted = InputGradient(addends, masked).to(at::kFloat);
      grad_weights.index_copy_(0, plan->picks.slice(0, group.begin, group.end),
                               grad_weighted.mul(h).sum(-1));
      const at::Tensor grad_h = grad_weighted.mul(weight);
      const at::Tensor grad_up = grad_h.mul(silu).to(x.scalar_type());
      const at::Tensor slope = s.mul(g.mul(s.neg().add(1.0)).add(1.0));
      const at::Tensor grad_gate = grad_h.mul(u).mul_(slope).to(x.scalar_type());
      addends.clear();
      masked.clear();
      ProductBackward(group, kGate, rows, grad_gate, adapters, adapter_grads, addends, masked);
      ProductBackward(group, kUp, rows, grad_up, adapters, adapter_grads, addends, masked);
      const at::Tensor grad_rows = InputGradient(addends, masked);
      grad_x.index_add_(0, tokens, grad_rows.to(at::kFloat));
    }
    variable_list result = {grad_x.to(x.scalar_type()), grad_weights.view(weights.sizes())};
    result.insert(result.end(), adapter_grads.begin(), adapter_grads.end());
    result.emplace_back();  // for the plan
    return result;
  }
};

// Collects the adapters of the experts with work, so that the others are not even looked at by
// autograd.
variable_list CollectAdapters(Plan& plan, const ForwardContext& context) {
  variable_list adapters;
  for (Group& group : plan.groups) {
    for (int part = kGate; part <= kDown; ++part) {
      LoraWeights weights;
      if (!FindAdapter(context, PartOf(*group.expert, part).module, weights)) continue;
      group.adapters[static_cast<std::size_t>(part)] = {static_cast<int>(adapters.size()),
                                                        weights.scaling, weights.dropout,
                                                        weights.dropout_seed};
      adapters.push_back(weights.a);
      adapters.push_back(weights.b);
    }
  }
  return adapters;
}

}  // namespace

at::Tensor RunExperts(const std::vector<Expert>& all, const at::Tensor& x,
                      const at::Tensor& experts, const at::Tensor& weights,
                      const ForwardContext& context) {
  const std::shared_ptr<Plan> plan = MakePlan(all, experts, x.device());
  const variable_list adapters = CollectAdapters(*plan, context);
  return ExpertsFunction::apply(x, weights.contiguous(), at::TensorList(adapters), plan);
}

}  // namespace offshoot::trainer
