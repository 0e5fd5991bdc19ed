#include "trainer/weights/ggml_types.h"

#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "trainer/weights/iq_types.h"
#include "trainer/weights/little_endian.h"

namespace offshoot::trainer {
namespace {

constexpr int kSuperBlock = 256;  // elements in a block of the K types
constexpr int kSmallBlock = 32;

void DequantiseF32(const std::uint8_t* data, std::int64_t blocks, float* out) {
  std::memcpy(out, data, static_cast<std::size_t>(blocks) * sizeof(float));
}

void DequantiseF16(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t i = 0; i < blocks; ++i) out[i] = ReadHalf(data + 2 * i);
}

void DequantiseBf16(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t i = 0; i < blocks; ++i) {
    out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(ReadU16(data + 2 * i)) << 16);
  }
}

void DequantiseQ4_0(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 18, out += kSmallBlock) {
    const float d = ReadHalf(data);
    const std::uint8_t* q = data + 2;
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>((q[i] & 0x0f) - 8);
      out[i + 16] = d * static_cast<float>((q[i] >> 4) - 8);
    }
  }
}

void DequantiseQ4_1(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 20, out += kSmallBlock) {
    const float d = ReadHalf(data);
    const float m = ReadHalf(data + 2);
    const std::uint8_t* q = data + 4;
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(q[i] & 0x0f) + m;
      out[i + 16] = d * static_cast<float>(q[i] >> 4) + m;
    }
  }
}

void DequantiseQ5_0(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 22, out += kSmallBlock) {
    const float d = ReadHalf(data);
    const std::uint32_t high = ReadU32(data + 2);
    const std::uint8_t* q = data + 6;
    for (int i = 0; i < 16; ++i) {
      const int low = (q[i] & 0x0f) | static_cast<int>(high >> i & 1) << 4;
      const int upper = (q[i] >> 4) | static_cast<int>(high >> (i + 16) & 1) << 4;
      out[i] = d * static_cast<float>(low - 16);
      out[i + 16] = d * static_cast<float>(upper - 16);
    }
  }
}

void DequantiseQ5_1(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 24, out += kSmallBlock) {
    const float d = ReadHalf(data);
    const float m = ReadHalf(data + 2);
    const std::uint32_t high = ReadU32(data + 4);
    const std::uint8_t* q = data + 8;
    for (int i = 0; i < 16; ++i) {
      const int low = (q[i] & 0x0f) | static_cast<int>(high >> i & 1) << 4;
      const int upper = (q[i] >> 4) | static_cast<int>(high >> (i + 16) & 1) << 4;
      out[i] = d * static_cast<float>(low) + m;
      out[i + 16] = d * static_cast<float>(upper) + m;
    }
  }
}

void DequantiseQ8_0(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 34, out += kSmallBlock) {
    const float d = ReadHalf(data);
    for (int i = 0; i < kSmallBlock; ++i) {
      out[i] = static_cast<float>(static_cast<std::int8_t>(data[2 + i])) * d;
    }
  }
}

void DequantiseQ2K(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 84, out += kSuperBlock) {
    const std::uint8_t* scales = data;
    const float d = ReadHalf(data + 80);
    const float dmin = ReadHalf(data + 82);
    for (int group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(scales[group] & 0x0f);
      const float minimum = dmin * static_cast<float>(scales[group] >> 4);
      const std::uint8_t* q = data + 16 + group / 8 * 32 + group % 2 * 16;
      const int shift = group / 2 % 4 * 2;
      for (int i = 0; i < 16; ++i) {
        out[group * 16 + i] = scale * static_cast<float>(q[i] >> shift & 3) - minimum;
      }
    }
  }
}

void DequantiseQ3K(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 110, out += kSuperBlock) {
    const std::uint8_t* mask = data;
    const std::uint8_t* scales = data + 96;
    const float d = ReadHalf(data + 108);
    for (int group = 0; group < 16; ++group) {
      const int low = group < 8 ? scales[group] & 0x0f : scales[group - 8] >> 4;
      const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      const std::uint8_t* q = data + 32 + group / 8 * 32 + group % 2 * 16;
      const int shift = group / 2 % 4 * 2;
      for (int i = 0; i < 16; ++i) {
        // The offset is zero where the mask's bit is one.
        const int offset = (mask[group % 2 * 16 + i] >> (group / 2) & 1) != 0 ? 0 : 4;
        out[group * 16 + i] = scale * static_cast<float>((q[i] >> shift & 3) - offset);
      }
    }
  }
}

struct ScaleAndMinimum {
  int scale;
  int minimum;
};

// The eight 6-bit pairs that Q4_K and Q5_K pack into 12 bytes.
ScaleAndMinimum UnpackScale(const std::uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 0x3f, packed[group + 4] & 0x3f};
  const int low = packed[group + 4];
  return {(low & 0x0f) | (packed[group - 4] >> 2 & 0x30), (low >> 4) | (packed[group] >> 2 & 0x30)};
}

void DequantiseQ4K(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 144, out += kSuperBlock) {
    const float d = ReadHalf(data);
    const float dmin = ReadHalf(data + 2);
    for (int group = 0; group < 8; ++group) {
      const ScaleAndMinimum pair = UnpackScale(data + 4, group);
      const float scale = d * static_cast<float>(pair.scale);
      const float minimum = dmin * static_cast<float>(pair.minimum);
      const std::uint8_t* q = data + 16 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) {
        out[group * 32 + i] = scale * static_cast<float>(q[i] >> shift & 0x0f) - minimum;
      }
    }
  }
}

void DequantiseQ5K(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 176, out += kSuperBlock) {
    const float d = ReadHalf(data);
    const float dmin = ReadHalf(data + 2);
    const std::uint8_t* high = data + 16;
    for (int group = 0; group < 8; ++group) {
      const ScaleAndMinimum pair = UnpackScale(data + 4, group);
      const float scale = d * static_cast<float>(pair.scale);
      const float minimum = dmin * static_cast<float>(pair.minimum);
      const std::uint8_t* q = data + 48 + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int i = 0; i < 32; ++i) {
        const int value = (q[i] >> shift & 0x0f) | (high[i] >> group & 1) << 4;
        out[group * 32 + i] = scale * static_cast<float>(value) - minimum;
      }
    }
  }
}

void DequantiseQ6K(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 210, out += kSuperBlock) {
    const float d = ReadHalf(data + 208);
    const std::uint8_t* scales = data + 192;
    for (int group = 0; group < 8; ++group) {
      const std::uint8_t* low = data + group / 4 * 64 + group % 2 * 32;
      const std::uint8_t* high = data + 128 + group / 4 * 32;
      const int low_shift = group / 2 % 2 * 4;
      const int high_shift = group % 4 * 2;
      for (int i = 0; i < 32; ++i) {
        const float scale =
            d * static_cast<float>(static_cast<std::int8_t>(scales[group * 2 + i / 16]));
        const int value = (low[i] >> low_shift & 0x0f) | (high[i] >> high_shift & 3) << 4;
        out[group * 32 + i] = scale * static_cast<float>(value - 32);
      }
    }
  }
}

constexpr std::array<std::int8_t, 16> kNonLinear = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                    1,    13,   25,  38,  53,  69,  89,  113};

void DequantiseIq4Nl(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 18, out += kSmallBlock) {
    const float d = ReadHalf(data);
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>(kNonLinear[data[2 + i] & 0x0f]);
      out[i + 16] = d * static_cast<float>(kNonLinear[data[2 + i] >> 4]);
    }
  }
}

void DequantiseIq4Xs(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 136, out += kSuperBlock) {
    const float d = ReadHalf(data);
    const int high = ReadU16(data + 2);
    for (int group = 0; group < 8; ++group) {
      const int low = data[4 + group / 2] >> (group % 2 * 4) & 0x0f;
      const float scale = d * static_cast<float>((low | (high >> (2 * group) & 3) << 4) - 32);
      const std::uint8_t* q = data + 8 + group * 16;
      for (int i = 0; i < 16; ++i) {
        out[group * 32 + i] = scale * static_cast<float>(kNonLinear[q[i] & 0x0f]);
        out[group * 32 + i + 16] = scale * static_cast<float>(kNonLinear[q[i] >> 4]);
      }
    }
  }
}

// Three values, -1 to 1, of 2 bits: four of each byte, 32 bytes at a time.
void DequantiseTq2_0(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 66) {
    const float d = ReadHalf(data + 64);
    for (int half = 0; half < 64; half += 32) {
      for (int shift = 0; shift < 8; shift += 2, out += 32) {
        for (int i = 0; i < 32; ++i) {
          out[i] = d * static_cast<float>((data[half + i] >> shift & 3) - 1);
        }
      }
    }
  }
}

// The same in base 3: the n-th value of a byte is the whole part of 3 times the fraction that
// 3^n bytes / 256 leave.
void DequantiseTq1_0(const std::uint8_t* data, std::int64_t blocks, float* out) {
  struct Piece {
    int begin, bytes, values;  // of each byte
  };
  constexpr Piece kPieces[] = {{0, 32, 5}, {32, 16, 5}, {48, 4, 4}};
  for (std::int64_t b = 0; b < blocks; ++b, data += 54) {
    const float d = ReadHalf(data + 52);
    for (const Piece& piece : kPieces) {
      int power = 1;
      for (int n = 0; n < piece.values; ++n, power *= 3, out += piece.bytes) {
        for (int i = 0; i < piece.bytes; ++i) {
          const int fraction = data[piece.begin + i] * power & 0xff;
          out[i] = d * static_cast<float>((fraction * 3 >> 8) - 1);
        }
      }
    }
  }
}

// Twice the values of E2M1 (OCP Microscaling Formats 1.0), so that they are whole.
constexpr std::array<std::int8_t, 16> kDoubledE2m1 = {0, 1,  2,  3,  4,  6,  8,  12,
                                                      0, -1, -2, -3, -4, -6, -8, -12};

// `bytes` bytes of pairs: their low halves first.
void DequantiseE2m1(const std::uint8_t* q, int bytes, float d, float* out) {
  for (int i = 0; i < bytes; ++i) {
    out[i] = d * static_cast<float>(kDoubledE2m1[q[i] & 0x0f]);
    out[i + bytes] = d * static_cast<float>(kDoubledE2m1[q[i] >> 4]);
  }
}

// Scale of a block: half of E8M0's 2^(e - 127).
void DequantiseMxfp4(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 17, out += kSmallBlock) {
    DequantiseE2m1(data + 1, 16, std::ldexp(1.0f, data[0] - 128), out);
  }
}

// Scales of 16 values each: half of unsigned E4M3, whose 0x7f is 0 here.
void DequantiseNvfp4(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 36) {
    for (int group = 0; group < 4; ++group, out += 16) {
      const int exponent = data[group] >> 3 & 0x0f, mantissa = data[group] & 7;
      const float size = exponent == 0
                             ? std::ldexp(static_cast<float>(mantissa), -10)
                             : std::ldexp(static_cast<float>(8 + mantissa), exponent - 11);
      DequantiseE2m1(data + 4 + group * 8, 8, data[group] == 0x7f ? 0.0f : size, out);
    }
  }
}

void QuantiseF32(const float* in, std::int64_t blocks, std::uint8_t* data) {
  std::memcpy(data, in, static_cast<std::size_t>(blocks) * sizeof(float));
}

void WriteHalf(float value, std::uint8_t* data) {
  const std::uint16_t half = c10::detail::fp16_ieee_from_fp32_value(value);
  std::memcpy(data, &half, sizeof half);
}

void QuantiseF16(const float* in, std::int64_t blocks, std::uint8_t* data) {
  for (std::int64_t i = 0; i < blocks; ++i) WriteHalf(in[i], data + 2 * i);
}

void QuantiseBf16(const float* in, std::int64_t blocks, std::uint8_t* data) {
  for (std::int64_t i = 0; i < blocks; ++i) {
    std::uint16_t packed = 0;
    PackBfloat16(in + i, 1, &packed);
    std::memcpy(data + 2 * i, &packed, sizeof packed);
  }
}

void QuantiseQ8_0(const float* in, std::int64_t blocks, std::uint8_t* data) {
  for (std::int64_t b = 0; b < blocks; ++b, in += kSmallBlock, data += 34) {
    float largest = 0;
    for (int i = 0; i < kSmallBlock; ++i) largest = std::max(largest, std::abs(in[i]));
    const float d = largest / 127.0f;
    const float inverse = d == 0 ? 0.0f : 1.0f / d;
    WriteHalf(d, data);
    for (int i = 0; i < kSmallBlock; ++i) {
      // std::round rounds halves away from zero, as ggml's roundf does.
      data[2 + i] =
          static_cast<std::uint8_t>(static_cast<std::int8_t>(std::round(in[i] * inverse)));
    }
  }
}

constexpr std::array<GgmlType, 33> kTypes = {{
    {0, "F32", 1, 4, DequantiseF32, QuantiseF32},
    {1, "F16", 1, 2, DequantiseF16, QuantiseF16},
    {2, "Q4_0", 32, 18, DequantiseQ4_0},
    {3, "Q4_1", 32, 20, DequantiseQ4_1},
    {6, "Q5_0", 32, 22, DequantiseQ5_0},
    {7, "Q5_1", 32, 24, DequantiseQ5_1},
    {8, "Q8_0", 32, 34, DequantiseQ8_0, QuantiseQ8_0},
    {9, "Q8_1", 32, 40, nullptr},
    {10, "Q2_K", 256, 84, DequantiseQ2K},
    {11, "Q3_K", 256, 110, DequantiseQ3K},
    {12, "Q4_K", 256, 144, DequantiseQ4K},
    {13, "Q5_K", 256, 176, DequantiseQ5K},
    {14, "Q6_K", 256, 210, DequantiseQ6K},
    {15, "Q8_K", 256, 292, nullptr},
    {16, "IQ2_XXS", 256, 66, DequantiseIq2Xxs},
    {17, "IQ2_XS", 256, 74, DequantiseIq2Xs},
    {18, "IQ3_XXS", 256, 98, DequantiseIq3Xxs},
    {19, "IQ1_S", 256, 50, DequantiseIq1S},
    {20, "IQ4_NL", 32, 18, DequantiseIq4Nl},
    {21, "IQ3_S", 256, 110, DequantiseIq3S},
    {22, "IQ2_S", 256, 82, DequantiseIq2S},
    {23, "IQ4_XS", 256, 136, DequantiseIq4Xs},
    {24, "I8", 1, 1, nullptr},
    {25, "I16", 1, 2, nullptr},
    {26, "I32", 1, 4, nullptr},
    {27, "I64", 1, 8, nullptr},
    {28, "F64", 1, 8, nullptr},
    {29, "IQ1_M", 256, 56, DequantiseIq1M},
    {30, "BF16", 1, 2, DequantiseBf16, QuantiseBf16},
    {34, "TQ1_0", 256, 54, DequantiseTq1_0},
    {35, "TQ2_0", 256, 66, DequantiseTq2_0},
    {39, "MXFP4", 32, 17, DequantiseMxfp4},
    {40, "NVFP4", 64, 36, DequantiseNvfp4},
}};

}  // namespace

const GgmlType* FindGgmlType(std::uint32_t id) {
  for (const GgmlType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

const GgmlType* FindGgmlType(const char* name) {
  for (const GgmlType& type : kTypes) {
    if (std::strcmp(type.name, name) == 0) return &type;
  }
  return nullptr;
}

const char* ReadableGgmlTypes() {
  return "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ1_S to IQ4_XS, TQ1_0, "
         "TQ2_0, "
         "MXFP4 and NVFP4";
}

void PackBfloat16(const float* in, std::int64_t count, std::uint16_t* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(in[i]);
    const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    out[i] = static_cast<std::uint16_t>(nan ? (bits >> 16 | 0x40) : rounded);
  }
}

}  // namespace offshoot::trainer
