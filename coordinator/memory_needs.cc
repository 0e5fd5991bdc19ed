#include "coordinator/memory_needs.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace offshoot {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxChanges = 16;
constexpr std::size_t kMaxChangesSaid = 3;
constexpr std::size_t kMaxWordsBytes = 400;
constexpr std::int64_t kMaxNeedBytes = std::int64_t{1} << 50;

std::int64_t BytesFrom(const Json& from) {
  const auto it = from.find("bytes");
  if (it == from.end() || !it->is_number_integer()) return 0;
  return std::clamp<std::int64_t>(it->get<std::int64_t>(), 0, kMaxNeedBytes);
}

std::string WordsFrom(const Json& from, const char* key) {
  const auto it = from.find(key);
  if (it == from.end() || !it->is_string()) return "";
  return it->get<std::string>().substr(0, kMaxWordsBytes);
}

DeviceNeed NeedFrom(const Json& memory, const char* kind) {
  DeviceNeed need;
  const auto it = memory.find(kind);
  if (it == memory.end() || !it->is_object()) return need;
  need.bytes = BytesFrom(*it);
  need.parts = WordsFrom(*it, "parts");
  const auto instead = it->find("instead");
  if (instead == it->end() || !instead->is_array()) return need;
  for (const Json& change : *instead) {
    if (!change.is_object() || need.instead.size() >= kMaxChanges) break;
    need.instead.push_back({WordsFrom(change, "change"), BytesFrom(change)});
  }
  return need;
}

Json NeedToJson(const DeviceNeed& need) {
  Json instead = Json::array();
  for (const DeviceNeed::Change& change : need.instead) {
    instead.push_back({{"change", change.change}, {"bytes", change.bytes}});
  }
  return {{"bytes", need.bytes}, {"parts", need.parts}, {"instead", std::move(instead)}};
}

std::string Gigabytes(std::int64_t bytes) {
  return absl::StrFormat("%.1f GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace

MemoryNeeds ParseMemoryNeeds(absl::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return {};
  const auto memory = json.find("memory");
  if (memory == json.end() || !memory->is_object()) return {};
  return {NeedFrom(*memory, "cpu"), NeedFrom(*memory, "cuda")};
}

std::string FormatMemoryNeeds(const MemoryNeeds& needs) {
  if (needs == MemoryNeeds()) return "";
  const Json json = {
      {"memory", {{"cpu", NeedToJson(needs.cpu)}, {"cuda", NeedToJson(needs.cuda)}}}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ExplainMemory(const DeviceNeed& need, absl::string_view kind,
                          std::int64_t largest_bytes) {
  std::string text = absl::StrCat("the job needs about ", Gigabytes(need.bytes), " of memory on a ",
                                  kind, " device");
  if (!need.parts.empty()) absl::StrAppend(&text, " (", need.parts, ")");
  absl::StrAppend(&text, ", and the largest it may use has ", Gigabytes(largest_bytes));
  std::size_t said = 0;
  for (const DeviceNeed::Change& change : need.instead) {
    if (change.bytes > largest_bytes || said == kMaxChangesSaid) continue;
    absl::StrAppend(&text, said == 0 ? "; it would fit with " : ", or with ", change.change, " (",
                    Gigabytes(change.bytes), ")");
    ++said;
  }
  if (said == 0) {
    absl::StrAppend(&text,
                    "; no smaller batch or dtype would fit: a device with more memory, a "
                    "smaller base model or a lower sequence_len would");
  }
  return text;
}

}  // namespace offshoot
