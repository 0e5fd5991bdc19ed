#include "trainer/weights/iq_types.h"

#include <array>
#include <bit>

#include "trainer/weights/little_endian.h"

namespace offshoot::trainer {
namespace {

#include "trainer/weights/iq_codebooks.inc"

constexpr std::array<float, 3> kIq1Values = {-1, 0, 1};
constexpr std::array<float, 3> kIq2Values = {8, 25, 43};
constexpr std::array<float, 8> kIq3XxsValues = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr std::array<float, 8> kIq3SValues = {1, 3, 5, 7, 9, 11, 13, 15};
constexpr float kIq1Delta = 0.125f;

// Seven signs are stored; the eighth makes the number of negative ones even.
std::uint32_t EightSigns(std::uint32_t seven) {
  return seven | static_cast<std::uint32_t>(std::popcount(seven) & 1) << 7;
}

int Nibble(const std::uint8_t* data, int index) { return data[index / 2] >> (index % 2 * 4) & 15; }

// Writes `count` values of an entry, times scale, negated where a bit of signs is set.
template <int count, typename Values>
void WriteEntry(std::uint32_t entry, const Values& values, float scale, std::uint32_t signs,
                float* out) {
  constexpr int kBits = 16 / count;
  for (int i = 0; i < count; ++i) {
    const float value = scale * values[entry >> (kBits * i) & ((1U << kBits) - 1)];
    out[i] = (signs >> i & 1) != 0 ? -value : value;
  }
}

void WriteIq1Entry(std::uint32_t entry, float delta, float scale, float* out) {
  for (int i = 0; i < 8; ++i) out[i] = scale * (kIq1Values[entry >> (2 * i) & 3] + delta);
}

}  // namespace

void DequantiseIq2Xxs(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 66) {
    const float d = ReadHalf(data);
    for (int group = 0; group < 8; ++group) {
      const std::uint8_t* codes = data + 2 + 8 * group;
      const std::uint32_t rest = ReadU32(codes + 4);
      const float scale = d * (0.5f + static_cast<float>(rest >> 28)) * 0.25f;
      for (int i = 0; i < 4; ++i, out += 8) {
        WriteEntry<8>(kIq2XxsCodes[codes[i]], kIq2Values, scale, EightSigns(rest >> (7 * i) & 0x7f),
                      out);
      }
    }
  }
}

void DequantiseIq2Xs(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 74) {
    const float d = ReadHalf(data);
    for (int i = 0; i < 32; ++i, out += 8) {
      const std::uint32_t code = ReadU16(data + 2 + 2 * i);
      const float scale = d * (0.5f + static_cast<float>(Nibble(data + 66, i / 2))) * 0.25f;
      WriteEntry<8>(kIq2XsCodes[code & 511], kIq2Values, scale, EightSigns(code >> 9), out);
    }
  }
}

void DequantiseIq2S(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 82) {
    const float d = ReadHalf(data);
    for (int i = 0; i < 32; ++i, out += 8) {
      const int high = data[66 + i / 4] >> (i % 4 * 2) & 3;
      const auto code = static_cast<std::size_t>(data[2 + i] | high << 8);
      const float scale = d * (0.5f + static_cast<float>(Nibble(data + 74, i / 2))) * 0.25f;
      WriteEntry<8>(kIq2SCodes[code], kIq2Values, scale, data[34 + i], out);
    }
  }
}

void DequantiseIq3Xxs(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 98) {
    const float d = ReadHalf(data);
    for (int group = 0; group < 8; ++group) {
      const std::uint32_t rest = ReadU32(data + 66 + 4 * group);
      const float scale = d * (0.5f + static_cast<float>(rest >> 28)) * 0.5f;
      for (int i = 0; i < 8; ++i, out += 4) {
        const std::uint32_t signs = EightSigns(rest >> (7 * (i / 2)) & 0x7f);
        WriteEntry<4>(kIq3XxsCodes[data[2 + 8 * group + i]], kIq3XxsValues, scale,
                      signs >> (i % 2 * 4), out);
      }
    }
  }
}

void DequantiseIq3S(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 110) {
    const float d = ReadHalf(data);
    for (int i = 0; i < 64; ++i, out += 4) {
      const int high = data[66 + i / 8] >> (i % 8) & 1;
      const auto code = static_cast<std::size_t>(data[2 + i] | high << 8);
      const float scale = d * static_cast<float>(1 + 2 * Nibble(data + 106, i / 8));
      WriteEntry<4>(kIq3SCodes[code], kIq3SValues, scale,
                    static_cast<std::uint32_t>(data[74 + i / 2]) >> (i % 2 * 4), out);
    }
  }
}

void DequantiseIq1S(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 50) {
    const float d = ReadHalf(data);
    for (int i = 0; i < 32; ++i, out += 8) {
      const int rest = ReadU16(data + 34 + i / 4 * 2);
      const auto code = static_cast<std::size_t>(data[2 + i] | (rest >> (i % 4 * 3) & 7) << 8);
      WriteIq1Entry(kIq1Codes[code], (rest & 0x8000) == 0 ? kIq1Delta : -kIq1Delta,
                    d * static_cast<float>(2 * (rest >> 12 & 7) + 1), out);
    }
  }
}

void DequantiseIq1M(const std::uint8_t* data, std::int64_t blocks, float* out) {
  for (std::int64_t b = 0; b < blocks; ++b, data += 56) {
    const std::uint8_t* scales = data + 48;
    int half = 0;  // the block's scale, in the four words' highest bits
    for (int i = 0; i < 4; ++i) half |= ReadU16(scales + 2 * i) >> 12 << (4 * i);
    const float d = HalfToFloat(static_cast<std::uint16_t>(half));
    for (int i = 0; i < 32; ++i, out += 8) {
      const int rest = Nibble(data + 32, i);
      const int scale = ReadU16(scales + i / 8 * 2) >> (i / 2 % 4 * 3) & 7;
      const auto code = static_cast<std::size_t>(data[i] | (rest & 7) << 8);
      WriteIq1Entry(kIq1Codes[code], (rest & 8) == 0 ? kIq1Delta : -kIq1Delta,
                    d * static_cast<float>(2 * scale + 1), out);
    }
  }
}

}  // namespace offshoot::trainer
