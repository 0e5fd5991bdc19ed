#include "trainer/lora/lora_config.h"

#include <cmath>
#include <regex>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

// As PEFT's get_pattern_key: the pattern stands for the whole path or for its end after a dot. A
// module that PEFT adapts as a parameter is matched by that parameter's name.
bool Matches(const std::string& pattern, const std::string& path) {
  try {
    const std::regex expression("(.*\\.)?(" + pattern + ")");
    return std::regex_match(path, expression) || std::regex_match(path + ".weight", expression);
  } catch (const std::regex_error&) {
    throw Error(Reason::kBadSpec, "The rank or alpha pattern `" + pattern +
                                      "` is not a valid regular expression; correct it.");
  }
}

}  // namespace

LoraSize SizeOf(const LoraConfig& config, const std::string& module_path) {
  LoraSize size{config.r, config.alpha};
  for (const auto& [pattern, r] : config.rank_pattern) {
    if (!Matches(pattern, module_path)) continue;
    size.r = r;
    break;
  }
  for (const auto& [pattern, alpha] : config.alpha_pattern) {
    if (!Matches(pattern, module_path)) continue;
    size.alpha = alpha;
    break;
  }
  return size;
}

double ScalingOf(const LoraConfig& config, const LoraSize& size) {
  const auto r = static_cast<double>(size.r);
  return size.alpha / (config.use_rslora ? std::sqrt(r) : r);
}

}  // namespace offshoot::trainer
