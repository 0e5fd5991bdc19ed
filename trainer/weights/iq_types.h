// ggml's types of blocks whose values are looked up in codebooks: the IQ1, IQ2 and IQ3 kinds, 256
// values a block (ggml/src/ggml-quants.c). Pure; thread-safe.
#pragma once

#include <cstdint>

namespace offshoot::trainer {

// As GgmlType::dequantise.
void DequantiseIq1S(const std::uint8_t* data, std::int64_t blocks, float* out);
void DequantiseIq1M(const std::uint8_t* data, std::int64_t blocks, float* out);
void DequantiseIq2Xxs(const std::uint8_t* data, std::int64_t blocks, float* out);
void DequantiseIq2Xs(const std::uint8_t* data, std::int64_t blocks, float* out);
void DequantiseIq2S(const std::uint8_t* data, std::int64_t blocks, float* out);
void DequantiseIq3Xxs(const std::uint8_t* data, std::int64_t blocks, float* out);
void DequantiseIq3S(const std::uint8_t* data, std::int64_t blocks, float* out);

}  // namespace offshoot::trainer
