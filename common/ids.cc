#include "common/ids.h"

#include "common/random.h"

namespace offshoot {
namespace {

// Crockford's base 32 in lower case: sorts like the number, no letters that look like digits.
constexpr char kAlphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";
constexpr int kTimeCharacters = 10;

std::string RandomCharacters(int count) {
  std::string text(count, '0');
  std::uint64_t bits = 0;
  for (int i = 0; i < count; ++i) {
    if (i % 12 == 0) bits = RandomBits();
    text[i] = kAlphabet[bits & 31];
    bits >>= 5;
  }
  return text;
}

}  // namespace

std::string MakeSortableId(absl::string_view prefix, std::int64_t unix_ms) {
  std::string time(kTimeCharacters, '0');
  auto rest = static_cast<std::uint64_t>(unix_ms < 0 ? 0 : unix_ms);
  for (int i = kTimeCharacters - 1; i >= 0; --i) {
    time[i] = kAlphabet[rest & 31];
    rest >>= 5;
  }
  return std::string(prefix) + time + RandomCharacters(8);
}

std::string MakeRandomId(absl::string_view prefix) {
  return std::string(prefix) + RandomCharacters(16);
}

}  // namespace offshoot
