// The settings of an adapter, with PEFT's names and defaults of this trainer. A value.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace offshoot::trainer {

constexpr std::int64_t kLargestRank = 65536;

struct LoraConfig {
  std::int64_t r = 16;
  double alpha = 32;
  double dropout = 0.0;
  bool use_rslora = false;
  // Each entry is a preset (attention, mlp, experts, all-linear), the last parts of a module's name
  // ("q_proj", "self_attn.q_proj"), or a regular expression over the whole module path (anything
  // with one of * + ? ( ) [ ] { } | ^ $ \ in it), as PEFT's string form.
  std::vector<std::string> target_modules = {"all-linear"};
  // PEFT's rank_pattern and alpha_pattern: a regular expression over the end of the module path ->
  // its own r or alpha.
  std::map<std::string, std::int64_t> rank_pattern;
  std::map<std::string, double> alpha_pattern;
};

// r and alpha of one module after the patterns.
struct LoraSize {
  std::int64_t r = 0;
  double alpha = 0;
};
LoraSize SizeOf(const LoraConfig& config, const std::string& module_path);
// alpha / r, or alpha / sqrt(r) with rsLoRA.
double ScalingOf(const LoraConfig& config, const LoraSize& size);

}  // namespace offshoot::trainer
