#include "common/nearest.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace offshoot {
namespace {

constexpr std::size_t kLongestWord = 64;

std::string Normalized(absl::string_view word) {
  std::string text = absl::AsciiStrToLower(word.substr(0, kLongestWord));
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

// Optimal string alignment: insertions, deletions, substitutions, swaps of neighbours.
std::size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::vector<std::size_t>> cost(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) cost[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) cost[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    for (std::size_t j = 1; j <= b.size(); ++j) {
      cost[i][j] = std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1,
                             cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
      }
    }
  }
  return cost[a.size()][b.size()];
}

}  // namespace

std::string NearestWord(absl::string_view word, const std::vector<std::string>& candidates) {
  const std::string wanted = Normalized(word);
  if (wanted.empty()) return "";
  std::string best;
  // Up to a third of the word may be wrong.
  std::size_t best_distance = std::max<std::size_t>(1, wanted.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = EditDistance(wanted, Normalized(candidate));
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace offshoot
