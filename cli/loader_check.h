// Which programs take a derivative as it is, and why not: the rules of each loader over the
// adapter's configuration, its tensors' names and the files that were published. Pure.
#pragma once

#include <string>
#include <vector>

namespace offshoot::cli {

// What is known of a derivative; texts that are not there are empty.
struct LoadableDerivative {
  std::vector<std::string> paths;            // of its files
  std::string adapter_config;                // adapter_config.json
  std::vector<std::string> adapter_tensors;  // names in adapter_model.safetensors
  std::string merged_config;                 // merged/config.json
};

struct LoaderVerdict {
  std::string loader;  // "PEFT", "vLLM", ...
  bool takes = false;
  std::string detail;  // how to give it the derivative, or why not and what to do
};

std::vector<LoaderVerdict> CheckLoaders(const LoadableDerivative& derivative);

}  // namespace offshoot::cli
