// Numbers as they lie in GGUF's blocks. Pure.
#pragma once

#include <bit>
#include <cstdint>

namespace offshoot::trainer {

inline std::uint16_t ReadU16(const std::uint8_t* data) {
  return static_cast<std::uint16_t>(data[0] | data[1] << 8);
}

inline std::uint32_t ReadU32(const std::uint8_t* data) {
  return static_cast<std::uint32_t>(ReadU16(data)) | static_cast<std::uint32_t>(ReadU16(data + 2))
                                                         << 16;
}

// Exact: every half is a float.
inline float HalfToFloat(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t exponent = half >> 10 & 0x1f;
  const std::uint32_t mantissa = half & 0x3ff;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

inline float ReadHalf(const std::uint8_t* data) { return HalfToFloat(ReadU16(data)); }

}  // namespace offshoot::trainer
