// A tiny model with an adapter that changes something, for the tests of this folder.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/normal.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trainer/lora/lora_set.h"
#include "trainer/models/decoder.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

inline const std::string kTinyGguf = "trainer/weights/testdata/tiny_llama.gguf";

struct TinyModel {
  explicit TinyModel(const std::string& path = kTinyGguf, at::ScalarType dtype = at::kFloat,
                     Quantisation quantisation = Quantisation::kNone,
                     std::vector<std::string> targets = {"all-linear"})
      : files(OpenBaseModel(path)),
        decoder(Decoder::Load(files, {.dtype = dtype, .quantisation = quantisation})) {
    LoraConfig config;
    config.r = 4;
    config.alpha = 8;
    config.target_modules = std::move(targets);
    adapters = LoraSet::Create(*decoder, config, 7);
    const at::NoGradGuard no_grad;
    at::Generator generator = at::detail::createCPUGenerator(11);
    for (const LoraSet::Parameter& parameter : adapters->parameters()) {
      if (parameter.name.find("lora_B") != std::string::npos) {
        parameter.tensor.normal_(0, 0.2, generator);
      }
    }
  }
  BaseModelFiles files;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<LoraSet> adapters;
};

}  // namespace offshoot::trainer
