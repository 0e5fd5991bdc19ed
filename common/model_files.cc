#include "common/model_files.h"

#include "absl/strings/match.h"

namespace offshoot {

bool BelongsToModel(absl::string_view path) {
  if (absl::StartsWith(path, ".") || absl::StrContains(path, "/.")) return false;
  const std::size_t slash = path.rfind('/');
  const absl::string_view name = slash == absl::string_view::npos ? path : path.substr(slash + 1);
  if (absl::StartsWith(name, "LICENSE") || name == "README.md") return true;
  for (const char* ending :
       {".json", ".safetensors", ".jinja", ".txt", ".model", ".tiktoken", ".gguf"}) {
    if (absl::EndsWith(name, ending)) return true;
  }
  return false;
}

}  // namespace offshoot
