#include <ATen/ops/mm.h>

#include <utility>
#include <vector>

#include "trainer/ops/autograd_support.h"
#include "trainer/ops/dropout.h"
#include "trainer/ops/ops.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Base = std::shared_ptr<const FrozenLinear>;

struct LoraOptions {
  double scaling;
  double dropout;
  std::uint64_t seed;
};

class FrozenLinearFunction : public torch::autograd::Function<FrozenLinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Base& base) {
    SaveValue(context, "base", base);
    return base->Forward(x);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Base& base = LoadValue<Base>(context, "base");
    return {base->BackwardInput(grads[0].contiguous()), at::Tensor()};
  }
};

class LoraLinearFunction : public torch::autograd::Function<LoraLinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& a,
                            const at::Tensor& b, const Base& base, const LoraOptions& options) {
    context->save_for_backward({x, a, b});
    SaveValue(context, "base", base);
    SaveValue(context, "options", options);
    const at::Tensor dropped =
        options.dropout > 0 ? DropoutCopy(x, options.dropout, options.seed) : x;
    const at::Tensor low = at::mm(dropped, a.to(x.scalar_type()).t());
    at::Tensor y = base->Forward(x);
    y.addmm_(low, b.to(x.scalar_type()).t(), 1.0, options.scaling);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const Base& base = LoadValue<Base>(context, "base");
    const LoraOptions& options = LoadValue<LoraOptions>(context, "options");
    const at::Tensor a = saved[1].to(x.scalar_type());
    const at::Tensor b = saved[2].to(x.scalar_type());
    const at::Tensor grad = grads[0].contiguous();
    const at::Tensor dropped =
        options.dropout > 0 ? DropoutCopy(x, options.dropout, options.seed) : x;
    const at::Tensor low = at::mm(dropped, a.t());
    const at::Tensor grad_low = at::mm(grad, b).mul_(options.scaling);
    const at::Tensor grad_a = at::mm(grad_low.t(), dropped).to(at::kFloat);
    const at::Tensor grad_b = at::mm(grad.t(), low).to(at::kFloat).mul_(options.scaling);
    at::Tensor grad_x;
    if (context->needs_input_grad(0)) {
      grad_x = base->BackwardInput(grad);
      if (options.dropout > 0) {
        grad_x.add_(DropoutCopy(at::mm(grad_low, a), options.dropout, options.seed));
      } else {
        grad_x.addmm_(grad_low, a);
      }
    }
    return {grad_x, grad_a, grad_b, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor LoraLinear(const at::Tensor& x, const std::shared_ptr<const FrozenLinear>& base,
                      const LoraWeights* adapter) {
  if (adapter == nullptr || !adapter->enabled) return FrozenLinearFunction::apply(x, base);
  return LoraLinearFunction::apply(
      x, adapter->a, adapter->b, base,
      LoraOptions{adapter->scaling, adapter->dropout, adapter->dropout_seed});
}

}  // namespace offshoot::trainer
