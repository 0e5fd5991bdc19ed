#include "common/quantity.h"

#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace offshoot {
namespace {

struct Unit {
  const char* name;
  std::int64_t factor;
};

// A whole number, then one of the units; a unit named "" allows a bare number.
template <std::size_t kCount>
bool ParseQuantity(absl::string_view text, const Unit (&units)[kCount], std::int64_t* result) {
  std::size_t digits = 0;
  while (digits < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[digits]))) {
    ++digits;
  }
  std::int64_t number = 0;
  if (digits == 0 || !absl::SimpleAtoi(text.substr(0, digits), &number)) return false;
  const absl::string_view name = absl::StripLeadingAsciiWhitespace(text.substr(digits));
  for (const Unit& unit : units) {
    if (name != unit.name) continue;
    if (number > std::numeric_limits<std::int64_t>::max() / unit.factor) return false;
    *result = number * unit.factor;
    return true;
  }
  return false;
}

}  // namespace

bool ParseSeconds(absl::string_view text, std::int64_t* seconds) {
  static constexpr Unit kUnits[] = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
  return ParseQuantity(text, kUnits, seconds);
}

bool ParseBytes(absl::string_view text, std::int64_t* bytes) {
  static constexpr Unit kUnits[] = {{"", 1},
                                    {"B", 1},
                                    {"kB", 1000},
                                    {"MB", 1000'000},
                                    {"GB", 1000'000'000},
                                    {"TB", 1000'000'000'000},
                                    {"KiB", 1LL << 10},
                                    {"MiB", 1LL << 20},
                                    {"GiB", 1LL << 30},
                                    {"TiB", 1LL << 40}};
  return ParseQuantity(text, kUnits, bytes);
}

std::string FormatSeconds(std::int64_t seconds) {
  if (seconds < 60) return absl::StrCat(seconds, " s");
  if (seconds < 3600) return absl::StrCat(seconds / 60, " min ", seconds % 60, " s");
  return absl::StrCat(seconds / 3600, " h ", seconds % 3600 / 60, " min");
}

std::string FormatBytes(std::int64_t bytes) {
  static constexpr const char* kNames[] = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < 4) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kNames[unit]);
}

}  // namespace offshoot
