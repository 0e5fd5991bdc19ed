// Reference logits: what the trained model in memory answered, kept so that a fresh process can
// check that the exported files answer the same.
//
// reference.safetensors: input_ids int64 [N, S] (right-padded with 0), attention_mask int64 [N, S],
// logits float32 [N, S, V]; metadata: dtype ("bfloat16"), quantisation of the base that was trained
// against ("none", "nf4", "int8"), format ("pt"). Where the mask is 0 the logits are 0. Functions
// are thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "trainer/models/decoder.h"

namespace offshoot::trainer {

// float32 [N, S, V] on the CPU for input_ids and attention_mask [N, S] as above. adapters may be
// null. No autograd. Throws Error(kBadData) for shapes, masks with holes, and ids out of range.
at::Tensor ComputeLogits(const Decoder& decoder, const Adapters* adapters,
                         const at::Tensor& input_ids, const at::Tensor& attention_mask);

// The same a row at a time, for vocabularies of which a few rows are more than a model in few bits:
// visit(row, logits [tokens, V] on the CPU in the decoder's dtype), without the padding; an empty
// row is passed over.
void VisitLogits(const Decoder& decoder, const Adapters* adapters, const at::Tensor& input_ids,
                 const at::Tensor& attention_mask,
                 const std::function<void(std::int64_t row, const at::Tensor& logits)>& visit);

// Each row cut to 64 tokens and at most 4 rows taken: enough to tell models apart, small enough to
// keep. Rows must not all be empty.
void WriteReference(const std::string& path, const Decoder& decoder, const Adapters* adapters,
                    at::ScalarType dtype, const std::vector<std::vector<std::int64_t>>& rows,
                    Quantisation quantisation = Quantisation::kNone);

}  // namespace offshoot::trainer
