#include "worker/trainer_spec_file.h"

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace offshoot::worker {
namespace {

using nlohmann::json;

// The value a pointer names; nullptr when there is none. By hand, since the library throws.
json* Resolve(json& root, const std::string& pointer) {
  if (!absl::StartsWith(pointer, "/")) return nullptr;
  json* value = &root;
  for (const absl::string_view part : absl::StrSplit(absl::string_view(pointer).substr(1), '/')) {
    const std::string name = absl::StrReplaceAll(part, {{"~1", "/"}, {"~0", "~"}});
    if (value->is_object() && value->contains(name)) {
      value = &(*value)[name];
    } else if (std::size_t index = 0;
               value->is_array() && absl::SimpleAtoi(name, &index) && index < value->size()) {
      value = &(*value)[index];
    } else {
      return nullptr;
    }
  }
  return value;
}

}  // namespace

absl::StatusOr<std::string> LocaliseSpec(const std::string& spec_json, const LocalSpec& local) {
  json spec = json::parse(spec_json, nullptr, /*allow_exceptions=*/false);
  if (!spec.is_object()) {
    return absl::InvalidArgumentError("the coordinator sent a trainer spec that is no JSON object");
  }
  for (const auto& [pointer, path] : local.paths) {
    json* value = Resolve(spec, pointer);
    if (value == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("the trainer spec has no place ", pointer, " for an input's path"));
    }
    *value = path;
  }
  if (local.resume_from.empty()) {
    spec["resume_from"] = nullptr;
  } else {
    spec["resume_from"] = local.resume_from;
  }
  spec["device"] = local.device;
  spec["threads"] = local.threads;
  if (local.memory_bytes > 0) spec["device_memory_bytes"] = local.memory_bytes;
  return spec.dump(2, ' ', false, json::error_handler_t::replace);
}

}  // namespace offshoot::worker
