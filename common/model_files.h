// Which files of a directory belong to a model, for digests and uploads. Pure, thread-safe.
#pragma once

#include "absl/strings/string_view.h"

namespace offshoot {

// Configuration, tokenizer, weights in safetensors or GGUF, licence and card. Not: weights in
// formats that are never read (pickles), and hidden files. path is relative, '/' separated.
bool BelongsToModel(absl::string_view path);

}  // namespace offshoot
