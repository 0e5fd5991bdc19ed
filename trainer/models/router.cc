#include "trainer/models/router.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <limits>
#include <tuple>

namespace offshoot::trainer {

Router::Router(const RouterSpec& spec, std::int64_t hidden, const std::string& layer_path,
               ModuleLoader& loader)
    : spec_(spec) {
  const std::string name = layer_path + "." + spec.weight_name;
  const std::vector<std::int64_t> shape = {spec.experts, hidden};
  weight_ = spec.float32_product ? loader.FloatTensor(name, shape) : loader.Tensor(name, shape);
  if (!spec.correction_name.empty()) {
    correction_ = loader.FloatVector(layer_path + "." + spec.correction_name, spec.experts);
  }
}

at::Tensor Router::Choose(const at::Tensor& scores) const {
  at::Tensor ranked = correction_.defined() ? scores.add(correction_) : scores;
  if (spec_.groups > 1) {
    const std::int64_t tokens = ranked.size(0);
    const std::int64_t members = spec_.experts / spec_.groups;
    const at::Tensor grouped = ranked.view({tokens, spec_.groups, members});
    const at::Tensor group_scores = std::get<0>(at::topk(grouped, 2, -1)).sum(-1);
    const at::Tensor chosen = std::get<1>(at::topk(group_scores, spec_.chosen_groups, -1));
    const at::Tensor allowed = at::zeros({tokens, spec_.groups}, ranked.options().dtype(at::kBool))
                                   .scatter_(1, chosen, true);
    ranked = grouped
                 .masked_fill(allowed.logical_not().unsqueeze(-1),
                              -std::numeric_limits<float>::infinity())
                 .view({tokens, spec_.experts});
  }
  return std::get<1>(at::topk(ranked, spec_.chosen, -1));
}

Routing Router::Route(const at::Tensor& x, bool wants_sums) const {
  const at::Tensor wide = spec_.float32_product ? x.to(at::kFloat) : x;
  const at::Tensor logits = at::mm(wide, weight_.t()).to(at::kFloat);
  const at::Tensor scores =
      spec_.score == RouterScore::kSigmoid ? at::sigmoid(logits) : at::softmax(logits, -1);
  Routing routing;
  {
    const at::NoGradGuard no_grad;
    routing.experts = Choose(scores.detach());
  }
  routing.weights = scores.gather(1, routing.experts);
  if (spec_.normalize) {
    at::Tensor sum = routing.weights.sum(-1, /*keepdim=*/true);
    if (spec_.normalize_minimum > 0.0) sum = sum.clamp_min(spec_.normalize_minimum);
    if (spec_.normalize_addend > 0.0) sum = sum.add(spec_.normalize_addend);
    routing.weights = routing.weights.div(sum);
  }
  if (spec_.scaling != 1.0) routing.weights = routing.weights.mul(spec_.scaling);
  if (wants_sums) {
    // The reference counts the picks of a plain softmax, without correction or groups.
    const at::Tensor probabilities = at::softmax(logits, -1);
    const at::Tensor picks = std::get<1>(at::topk(probabilities.detach(), spec_.chosen, -1));
    const at::Tensor counts = at::zeros_like(probabilities.detach()).scatter_(1, picks, 1.0);
    routing.sums = at::stack({probabilities.sum(0), counts.sum(0)});
  }
  return routing;
}

}  // namespace offshoot::trainer
