// What the decoder computes on: rows back to back, without padding. Dense batches, ragged batches
// and packed blocks are all this one shape, so there is one forward path.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace offshoot::trainer {

constexpr std::int64_t kIgnoredLabel = -100;

struct TokenBatch {
  at::Tensor tokens;     // int64 [T]
  at::Tensor positions;  // int64 [T], restarting at 0 in each row
  at::Tensor labels;     // int64 [T], already shifted: labels[t] is what tokens[t] must predict;
                         // kIgnoredLabel where nothing is trained; undefined if there are no labels;
                         // on the CPU, whatever the device
  std::vector<std::int64_t>
      row_offsets;                  // rows + 1 entries, from 0 to T; attention stays inside a row
  std::int64_t trained_tokens = 0;  // labels that are not kIgnoredLabel
  std::vector<std::int64_t> rows;   // index of each row in its data set (0-based), for messages
};

}  // namespace offshoot::trainer
