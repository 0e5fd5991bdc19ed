// What the decoder knows of LoRA: for each linear module, a pair of low-rank weights or none.
// trainer/lora implements it; the decoder does not depend on how adapters are made or stored.
#pragma once

#include <cstddef>

#include "trainer/ops/ops.h"

namespace offshoot::trainer {

class Adapters {
 public:
  virtual ~Adapters() = default;
  // Null if the module has no adapter. `module` indexes Decoder::linear_modules(). Valid as long
  // as the object lives; a forward pass and its backward pass read it.
  virtual const LoraWeights* Find(std::size_t module) const = 0;
};

}  // namespace offshoot::trainer
