// Which linear modules get an adapter, and how a set of modules is written down so that PEFT finds
// the same ones. Pure; thread-safe.
#pragma once

#include <string>
#include <vector>

#include "trainer/models/decoder.h"

namespace offshoot::trainer {

using LinearModules = std::vector<Decoder::LinearModule>;

// Indexes of the targeted modules, ascending. Throws Error(kBadSpec) naming the first target that
// matches nothing (or is no valid regular expression) and what there is.
std::vector<std::size_t> SelectTargets(const LinearModules& modules,
                                       const std::vector<std::string>& targets);

// "q_proj" of "model.layers.0.self_attn.q_proj".
std::string LastName(const std::string& path);

// "model.layers.3.mlp.up_proj" -> "mlp.up_proj"; a path outside the layers as it is.
std::string BelowLayer(const std::string& path);

// True if PEFT's target_modules entry `target` (a name, not a preset) stands for this path.
bool TargetMatches(const std::string& target, const std::string& path);

// How adapter_config.json says which modules were selected: a list of names, or, where no list of
// last names fits, one regular expression. In a model with routed experts, PEFT (0.21 with
// transformers 5) takes a bare gate_proj/up_proj/down_proj (w1/w2/w3) for the routed experts alone,
// so dense and shared MLPs are named as parameters there.
struct TargetNames {
  std::vector<std::string> names;
  std::string pattern;                  // if not empty, instead of names
  std::vector<std::string> parameters;  // PEFT's target_parameters: "mlp.shared_mlp.up_proj.weight"
};
// mixture: the model is of a family with routed experts, so that PEFT takes the names so even if
// these modules have none.
TargetNames DescribeTargets(const LinearModules& modules, const std::vector<std::size_t>& selected,
                            bool mixture = false);

}  // namespace offshoot::trainer
