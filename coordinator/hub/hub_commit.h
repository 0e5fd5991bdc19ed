// The body of a hub's commit call: JSON lines that add, replace and delete files of a repository.
// Pure; thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/digest.h"

namespace offshoot {

inline constexpr std::size_t kMaxHubRepositoryFiles = 4096;

// What a commit's lines do to a set of files; content of small files goes to `keep`, which gives
// its entry. INVALID_ARGUMENT naming the line's path: outside, unknown operation, or not
// well-formed. *parent: the commit it builds on, where it says one. Pure but for `keep` and `find`.
absl::StatusOr<std::vector<FileEntry>> ApplyCommit(
    std::vector<FileEntry> files, const std::string& lines,
    const std::function<absl::StatusOr<FileEntry>(const std::string& path,
                                                  const std::string& data)>& keep,
    const std::function<std::optional<std::int64_t>(const std::string& digest)>& find,
    std::string* parent);

// INVALID_ARGUMENT for a path that is not inside a repository.
absl::Status CheckHubFilePath(const std::string& path);

// A field of an object that came from outside; "" and -1 where it is none of that type.
std::string HubText(const nlohmann::json& object, const char* key);
std::int64_t HubNumber(const nlohmann::json& object, const char* key);

}  // namespace offshoot
