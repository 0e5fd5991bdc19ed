#include "trainer/lora/lora_targets.h"

#include <algorithm>
#include <optional>
#include <regex>
#include <set>

#include "trainer/error.h"
#include "trainer/lora/fused_experts.h"

namespace offshoot::trainer {
namespace {

constexpr std::size_t kLongestPattern = 4096;  // bytes of a regular expression

bool IsPattern(const std::string& target) {
  return target.find_first_of("*+?()[]{}|^$\\") != std::string::npos;
}

bool IsPreset(const std::string& target) {
  return target == "all-linear" || target == "attention" || target == "mlp" || target == "experts";
}

bool InPreset(const std::string& preset, ModuleGroup group) {
  switch (group) {
    case ModuleGroup::kAttention:
      return preset == "all-linear" || preset == "attention";
    case ModuleGroup::kMlp:
      return preset == "all-linear" || preset == "mlp";
    case ModuleGroup::kExpert:
      return preset == "all-linear" || preset == "experts";
  }
  return false;
}

std::string Join(const std::set<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string WhatThereIs(const LinearModules& modules) {
  std::set<std::string> names, presets = {"all-linear"};
  for (const auto& module : modules) {
    names.insert(LastName(module.path));
    for (const char* preset : {"attention", "mlp", "experts"}) {
      if (InPreset(preset, module.group)) presets.insert(preset);
    }
  }
  return "this model has the linear layers " + Join(names) + " and the presets " + Join(presets);
}

std::regex Compile(const std::string& pattern) {
  if (pattern.size() > kLongestPattern) {
    throw Error(Reason::kBadSpec, "A regular expression in lora_target_modules is longer than " +
                                      std::to_string(kLongestPattern) + " bytes; shorten it.");
  }
  try {
    return std::regex(pattern);
  } catch (const std::regex_error& error) {
    throw Error(Reason::kBadSpec, "The LoRA target `" + pattern +
                                      "` is not a valid regular expression (" + error.what() +
                                      "); correct it or give names.");
  }
}

// The path without layer and expert numbers: "model.layers.#.mlp.experts.#.up_proj".
std::string Shape(const std::string& path) {
  static const std::regex kNumber(R"(\.\d+(?=\.))");
  return std::regex_replace(path, kNumber, ".#");
}

std::string AsPattern(const std::set<std::string>& shapes) {
  std::string pattern;
  for (const std::string& shape : shapes) {
    std::string escaped;
    for (const char c : shape) {
      if (c == '.') {
        escaped += "\\.";
      } else if (c == '#') {
        escaped += "\\d+";
      } else {
        escaped += c;
      }
    }
    pattern += (pattern.empty() ? "" : "|") + escaped;
  }
  return pattern;
}

}  // namespace

std::string LastName(const std::string& path) { return path.substr(path.rfind('.') + 1); }

bool TargetMatches(const std::string& target, const std::string& path) {
  if (IsPattern(target)) return std::regex_match(path, Compile(target));
  return path == target || path.ends_with("." + target);
}

std::vector<std::size_t> SelectTargets(const LinearModules& modules,
                                       const std::vector<std::string>& targets) {
  if (targets.empty()) {
    throw Error(Reason::kBadSpec, "lora_target_modules is empty; " + WhatThereIs(modules) + ".");
  }
  std::set<std::size_t> selected;
  for (const std::string& target : targets) {
    const bool preset = IsPreset(target);
    std::optional<std::regex> pattern;
    if (!preset && IsPattern(target)) pattern = Compile(target);
    const std::vector<std::size_t> fused = FusedTargetModules(modules, target);
    bool matched = !fused.empty();
    selected.insert(fused.begin(), fused.end());
    for (std::size_t i = 0; i < modules.size(); ++i) {
      const bool hit = preset    ? InPreset(target, modules[i].group)
                       : pattern ? std::regex_match(modules[i].path, *pattern)
                                 : TargetMatches(target, modules[i].path);
      if (!hit) continue;
      matched = true;
      selected.insert(i);
    }
    if (!matched && (LastName(target) == "lm_head" || LastName(target) == "embed_tokens")) {
      throw Error(Reason::kBadSpec, "The LoRA target `" + target +
                                        "` is the model's head or embedding, which always stay as "
                                        "they are here; leave it out: " +
                                        WhatThereIs(modules) + ".");
    }
    if (!matched) {
      throw Error(Reason::kBadSpec, "The LoRA target `" + target +
                                        "` matches no linear layer that can be adapted; " +
                                        WhatThereIs(modules) + ".");
    }
  }
  return {selected.begin(), selected.end()};
}

std::string BelowLayer(const std::string& path) {
  static const std::regex kLayer(R"(^.*?\.\d+\.)");
  return std::regex_replace(path, kLayer, "", std::regex_constants::format_first_only);
}

namespace {

// The modules that PEFT finds by target_modules; the others are named as parameters.
bool FoundByName(const Decoder::LinearModule& module, bool has_experts) {
  return !has_experts || module.group != ModuleGroup::kMlp;
}

// Dense and shared MLPs beside routed experts.
std::vector<std::string> AsParameters(const LinearModules& modules,
                                      const std::set<std::size_t>& chosen) {
  std::set<std::string> left_out, parameters;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    if (!chosen.contains(i)) left_out.insert(BelowLayer(modules[i].path));
  }
  for (const std::size_t i : chosen) {
    if (FoundByName(modules[i], true)) continue;
    const std::string below = BelowLayer(modules[i].path);
    parameters.insert((left_out.contains(below) ? modules[i].path : below) + ".weight");
  }
  return {parameters.begin(), parameters.end()};
}

}  // namespace

TargetNames DescribeTargets(const LinearModules& modules, const std::vector<std::size_t>& selected,
                            bool mixture) {
  const std::set<std::size_t> chosen(selected.begin(), selected.end());
  const bool has_experts =
      mixture || std::any_of(modules.begin(), modules.end(), [](const auto& module) {
        return module.group == ModuleGroup::kExpert;
      });
  TargetNames result;
  if (has_experts) result.parameters = AsParameters(modules, chosen);
  std::set<std::string> names, chosen_shapes, other_shapes;
  for (const std::size_t i : selected) {
    if (FoundByName(modules[i], has_experts)) names.insert(LastName(modules[i].path));
  }
  bool names_fit = true;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    if (!FoundByName(modules[i], has_experts)) continue;
    const bool is_chosen = chosen.contains(i);
    (is_chosen ? chosen_shapes : other_shapes).insert(Shape(modules[i].path));
    if (!is_chosen && names.contains(LastName(modules[i].path))) names_fit = false;
  }
  if (names_fit) {
    result.names.assign(names.begin(), names.end());
    return result;
  }
  const bool shapes_fit = std::none_of(chosen_shapes.begin(), chosen_shapes.end(),
                                       [&](const auto& s) { return other_shapes.contains(s); });
  if (shapes_fit) {
    result.pattern = AsPattern(chosen_shapes);
    return result;
  }
  for (const std::size_t i : selected) {
    if (FoundByName(modules[i], has_experts)) result.names.push_back(modules[i].path);
  }
  return result;
}

}  // namespace offshoot::trainer
