#include "trainer/models/recompute.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "trainer/ops/autograd_support.h"

namespace offshoot::trainer {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class RecomputeFunction : public torch::autograd::Function<RecomputeFunction> {
 public:
  static variable_list forward(AutogradContext* context, const Segment& segment,
                               const at::Tensor& x, at::TensorList parameters) {
    variable_list saved = {x};
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    context->save_for_backward(std::move(saved));
    SaveValue(context, "segment", segment);
    return segment(x, /*again=*/false);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    variable_list inputs = context->get_saved_variables();
    const bool wants_input = context->needs_input_grad(0);
    variable_list outputs;
    {
      const at::AutoGradMode enabled(true);
      inputs[0] = inputs[0].detach().requires_grad_(wants_input);
      outputs = LoadValue<Segment>(context, "segment")(inputs[0], /*again=*/true);
    }
    variable_list wanted(inputs.begin() + (wants_input ? 0 : 1), inputs.end());
    variable_list used_outputs, used_grads;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (!grads[i].defined() || !outputs[i].requires_grad()) continue;
      used_outputs.push_back(outputs[i]);
      used_grads.push_back(grads[i]);
    }
    variable_list found(wanted.size());
    if (!used_outputs.empty()) {
      found = torch::autograd::grad(used_outputs, wanted, used_grads, /*retain_graph=*/false,
                                    /*create_graph=*/false, /*allow_unused=*/true);
    }
    variable_list result = {at::Tensor()};  // for the segment itself
    if (!wants_input) result.emplace_back();
    result.insert(result.end(), found.begin(), found.end());
    return result;
  }
};

}  // namespace

std::vector<at::Tensor> Recompute(const Segment& segment, const at::Tensor& x,
                                  const std::vector<at::Tensor>& parameters) {
  return RecomputeFunction::apply(segment, x, at::TensorList(parameters));
}

}  // namespace offshoot::trainer
