// A GGUF file as a source of Hugging Face tensors: names translated, rows un-permuted, blocks
// dequantised on at::parallel_for's threads.
#pragma once

#include <memory>

#include "trainer/weights/gguf.h"
#include "trainer/weights/gguf_architectures.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

// Throws Error(kBadModel) naming a tensor that the architecture does not have or whose type is not
// read. A dequantised value is the float32 that the `gguf` package gives, rounded once to the
// wanted dtype.
std::unique_ptr<TensorSource> MakeGgufSource(GgufFile file, const GgufArchitecture& architecture,
                                             const nlohmann::json& config);

}  // namespace offshoot::trainer
