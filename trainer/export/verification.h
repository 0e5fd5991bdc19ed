// Does what was exported, read back from disk, answer as the model that was trained?
//
// Thread-safe. Throws Error(kBadModel) with one sentence when it does not, or when a file is
// missing or corrupt.
#pragma once

#include <string>

namespace offshoot::trainer {

struct VerificationRequest {
  std::string result_directory;  // the derivative
  std::string base_path;
  std::string reference_path;  // reference.safetensors
  std::string device = "cpu";
};

// How far logits are from the reference's: the root of the mean square of the difference, as a part
// of the reference's own, over all tokens.
struct VerificationReport {
  double base_distance = 0;     // of the base alone: what the adapter changes
  double adapter_distance = 0;  // rounding only
  double merged_distance = -1;  // -1: there is no merged model
  double gguf_distance = -1;    // -1: there is no model.gguf
};

// Every file of offshoot.json must have its digest; the adapter must fit the base and be within
// 1e-5 (float32) or 5e-3 (bfloat16) of the reference; each merged weight must be base + adapter
// rounded once, and the merged model within 1e-4 or 0.1 of the reference; model.gguf within 0.1.
// After training on a quantised base the adapter is checked on that, merged models against the
// plain base with the adapter.
VerificationReport VerifyDerivative(const VerificationRequest& request);

}  // namespace offshoot::trainer
