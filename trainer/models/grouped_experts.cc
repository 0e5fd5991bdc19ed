#include "trainer/models/grouped_experts.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <utility>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/cpu/parallel.h"
#include "trainer/ops/dropout.h"
#include "trainer/ops/expert_rows.h"
#include "trainer/ops/products.h"
#include "trainer/ops/to_device.h"

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
  std::vector<Group> groups;        // the largest first
  std::int64_t inner = 0;           // width between up and down
  bool groups_side_by_side = true;  // else one after the other, each with all threads
  at::Tensor tokens;                // int64 [T * K]: the token of each slot, sorted by expert
  at::Tensor picks;                 // int64 [T * K]: its place in the flattened [T, K]
  at::Tensor slots;                 // int64 [T, K]: the slot of each pick
};

const Projection& PartOf(const Expert& expert, int part) {
  return part == kGate ? expert.gate : part == kUp ? expert.up : expert.down;
}

// Groups side by side, a thread each, need no waiting for each other; but where one group is much
// of the work, or there are fewer than threads, all threads work on one group at a time.
void ArrangeGroups(Plan& plan, std::int64_t slots, const at::Device& device) {
  std::stable_sort(plan.groups.begin(), plan.groups.end(), [](const Group& a, const Group& b) {
    return a.end - a.begin > b.end - b.begin;
  });
  const auto threads = static_cast<std::int64_t>(at::get_num_threads());
  plan.groups_side_by_side = device.is_cpu() &&
                             static_cast<std::int64_t>(plan.groups.size()) >= 2 * threads &&
                             (plan.groups[0].end - plan.groups[0].begin) * threads <= slots;
}

// run(group, next): next is what this thread is likely to be given afterwards, or null.
void ForGroups(const Plan& plan, const std::function<void(const Group&, const Group*)>& run) {
  const auto count = static_cast<std::int64_t>(plan.groups.size());
  const std::int64_t apart = plan.groups_side_by_side ? at::get_num_threads() : 1;
  const auto some = [&](std::int64_t begin, std::int64_t end, void*) {
    const at::NoGradGuard no_grad;  // the pool's threads have a mode of their own
    const Group* groups = plan.groups.data();
    for (std::int64_t i = begin; i < end; ++i) {
      run(groups[i], i + apart < count ? &groups[i + apart] : nullptr);
    }
  };
  if (plan.groups_side_by_side) return cpu::ParallelTasks(count, 0, some, {.most = 1});
  some(0, count, nullptr);
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
  at::Tensor places = at::empty(choice.sizes(), at::kLong);
  auto* token = tokens.mutable_data_ptr<std::int64_t>();
  auto* pick = picks.mutable_data_ptr<std::int64_t>();
  auto* place = places.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < slots; ++i) {
    const std::int64_t slot = offsets[static_cast<std::size_t>(chosen[i])]++;
    token[slot] = i / per_token;
    pick[slot] = i;
    place[i] = slot;
  }
  plan->tokens = ToDevice(tokens, device);
  plan->picks = ToDevice(picks, device);
  plan->slots = ToDevice(places, device);
  plan->inner = all[0].gate.base->out_features();
  ArrangeGroups(*plan, slots, device);
  return plan;
}

at::Tensor Dropped(const at::Tensor& x, const ExpertAdapter& adapter) {
  return adapter.dropout > 0 ? DropoutCopy(x, adapter.dropout, adapter.seed) : x;
}

// A matrix that the thread will multiply with next, or null.
const FrozenLinear* Base(const Group* group, int part) {
  return group == nullptr ? nullptr : PartOf(*group->expert, part).base.get();
}

void MultiplyBefore(const FrozenLinear* next, bool transposed, const at::Tensor& out,
                    const std::vector<Addend>& addends, const at::Tensor& bias = {}) {
  const Addend ahead = {{}, next == nullptr ? at::Tensor() : next->InMemory(), transposed};
  MultiplyInto(out, addends, bias, 1.0, ahead.b.defined() ? &ahead : nullptr);
}

// One matrix of one expert on its tokens x [n, in], into out [n, out].
void ProductInto(const at::Tensor& out, const Group& group, int part, const at::Tensor& x,
                 const variable_list& adapters, const FrozenLinear* next) {
  const FrozenLinear& base = *PartOf(*group.expert, part).base;
  const ExpertAdapter& adapter = group.adapters[static_cast<std::size_t>(part)];
  std::vector<Addend> addends = {{x, base.Rows(0, base.out_features()), true}};
  if (adapter.first >= 0) {
    const auto first = static_cast<std::size_t>(adapter.first);
    const at::Tensor low =
        Multiply({{Dropped(x, adapter), adapters[first], true}}, {}, adapter.scaling);
    addends.push_back({low, adapters[first + 1], true});
  }
  MultiplyBefore(next, true, out, addends, base.Bias());
}

// Appends what gives the gradient of x when summed; sets the gradients of the part's adapter. With
// dropout, the low-rank path's share is masked and goes to `masked` instead.
void ProductBackward(const Group& group, int part, const at::Tensor& x, const at::Tensor& grad,
                     const variable_list& adapters, variable_list& adapter_grads,
                     std::vector<Addend>& addends, std::vector<at::Tensor>& masked) {
  const FrozenLinear& base = *PartOf(*group.expert, part).base;
  addends.push_back({grad, base.Rows(0, base.out_features())});
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

void InputGradientInto(const at::Tensor& grad, const std::vector<Addend>& addends,
                       const std::vector<at::Tensor>& masked, const FrozenLinear* next) {
  MultiplyBefore(next, false, grad, addends);
  for (const at::Tensor& part : masked) grad.add_(part);
}

at::Tensor SlotsOf(const Group& group, const at::Tensor& t) {
  return t.slice(0, group.begin, group.end);
}

class ExpertsFunction : public torch::autograd::Function<ExpertsFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weights, at::TensorList adapter_list,
                            const std::shared_ptr<Plan>& plan) {
    const variable_list adapters(adapter_list.begin(), adapter_list.end());
    const at::Tensor slot_weights = weights.view({-1}).index_select(0, plan->picks);
    const std::int64_t slots = plan->tokens.size(0);
    const at::Tensor gate = at::empty({slots, plan->inner}, x.options());
    const at::Tensor up = at::empty_like(gate);
    const at::Tensor out = at::empty({slots, x.size(1)}, x.options());
    ForGroups(*plan, [&](const Group& group, const Group* next) {
      const at::Tensor rows = x.index_select(0, SlotsOf(group, plan->tokens));
      const at::Tensor group_gate = SlotsOf(group, gate), group_up = SlotsOf(group, up);
      ProductInto(group_gate, group, kGate, rows, adapters, Base(&group, kUp));
      ProductInto(group_up, group, kUp, rows, adapters, Base(&group, kDown));
      // weight * down(h) = down(weight * h): the weight's gradient needs no product of its own.
      const at::Tensor h = WeightedSwiGlu(group_gate, group_up, SlotsOf(group, slot_weights));
      ProductInto(SlotsOf(group, out), group, kDown, h, adapters, Base(next, kGate));
    });
    // x is read again only for the gradients of adapters.
    variable_list saved = {adapters.empty() ? at::Tensor() : x, slot_weights, gate, up};
    saved.insert(saved.end(), adapters.begin(), adapters.end());
    context->save_for_backward(std::move(saved));
    SaveValue(context, "plan", plan);
    return SumRows(out, plan->slots);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto plan = LoadValue<std::shared_ptr<Plan>>(context, "plan");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &slot_weights = saved[1], &gate = saved[2], &up = saved[3];
    const variable_list adapters(saved.begin() + 4, saved.end());
    variable_list adapter_grads(adapters.size());
    const at::Tensor grad = grads[0].contiguous();
    const at::Tensor grad_slots = at::empty({gate.size(0), grad.size(1)}, grad.options());
    const at::Tensor grad_slot_weights = at::empty_like(slot_weights);
    ForGroups(*plan, [&](const Group& group, const Group* next) {
      GroupBackward(
          {group, next, SlotsOf(group, gate), SlotsOf(group, up), SlotsOf(group, slot_weights),
           SlotsOf(group, grad_slots), SlotsOf(group, grad_slot_weights)},
          x, grad, SlotsOf(group, plan->tokens), adapters, adapter_grads);
    });
    variable_list result = {
        SumRows(grad_slots, plan->slots),
        grad_slot_weights.index_select(0, plan->slots.flatten()).view(plan->slots.sizes())};
    result.insert(result.end(), adapter_grads.begin(), adapter_grads.end());
    result.emplace_back();  // for the plan
    return result;
  }

 private:
  // One group's part of what forward saved and of what backward fills.
  struct GroupSlots {
    const Group& group;
    const Group* next;  // of ForGroups
    at::Tensor gate, up, weights;
    at::Tensor grad_rows, grad_weights;
  };

  static void GroupBackward(const GroupSlots& slots, const at::Tensor& x, const at::Tensor& grad,
                            const at::Tensor& tokens, const variable_list& adapters,
                            variable_list& adapter_grads) {
    const Group& group = slots.group;
    const at::Tensor grad_y = grad.index_select(0, tokens);
    std::vector<Addend> addends;
    std::vector<at::Tensor> masked;
    const at::Tensor grad_h = at::empty_like(slots.gate);
    const at::Tensor h = group.adapters[kDown].first >= 0
                             ? WeightedSwiGlu(slots.gate, slots.up, slots.weights)
                             : at::Tensor();
    ProductBackward(group, kDown, h, grad_y, adapters, adapter_grads, addends, masked);
    InputGradientInto(grad_h, addends, masked, Base(&group, kGate));
    addends.clear();
    masked.clear();
    const WeightedSwiGluGradients inner =
        WeightedSwiGluBackward(grad_h, slots.gate, slots.up, slots.weights);
    slots.grad_weights.copy_(inner.weights);
    const at::Tensor rows = group.adapters[kGate].first >= 0 || group.adapters[kUp].first >= 0
                                ? x.index_select(0, tokens)
                                : at::Tensor();
    ProductBackward(group, kGate, rows, inner.gate, adapters, adapter_grads, addends, masked);
    ProductBackward(group, kUp, rows, inner.up, adapters, adapter_grads, addends, masked);
    InputGradientInto(slots.grad_rows, addends, masked, Base(slots.next, kDown));
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
