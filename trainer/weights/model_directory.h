// A Hugging Face model directory: one or many safetensors files under one face, FP8 dequantised.
#pragma once

#include <memory>
#include <string>

#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

// Maps model.safetensors, or the shards that model.safetensors.index.json names. config tells how
// FP8 weights were quantised. Throws Error(kBadModel).
//
// FP8 (DeepSeek V3): a weight W [O, I] of dtype F8_E4M3 with W_scale_inv [ceil(O/128), ceil(I/128)]
// loads as float(W) * scale of its block; with W_scale [1] or [O, 1] as float(W) * scale. The
// scales are hidden from List and Find.
std::unique_ptr<TensorSource> OpenModelDirectory(const std::string& directory,
                                                 const nlohmann::json& config);

}  // namespace offshoot::trainer
