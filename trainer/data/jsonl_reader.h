// Reads a JSONL file line by line, in bounded memory, and says exactly where it is wrong.
#pragma once

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace offshoot::trainer {

// The longest line that is read. A longer one is an error, not memory.
constexpr std::size_t kMaxLineBytes = 256u << 20;
// The deepest nesting of a line's JSON.
constexpr int kMaxJsonDepth = 64;

struct JsonlLine {
  std::int64_t number = 0;  // from 1
  std::string text;
};

// Not thread-safe. Throws Error(kBadData) naming the file.
class JsonlReader {
 public:
  // shown: what messages call the file; empty: its path.
  explicit JsonlReader(const std::string& path, const std::string& shown = "");
  // The next line that is not blank; false at the end of the file.
  bool Next(JsonlLine* line);

 private:
  const std::string shown_;
  std::ifstream file_;
  std::int64_t number_ = 0;
};

// The JSON object of one line. Throws Error(kBadData): not UTF-8 (with the byte), not JSON (with
// what is wrong), no object, nested too deeply. The caller adds file and line.
nlohmann::ordered_json ParseJsonLine(const std::string& text);

// The first byte that is not well-formed UTF-8 (no surrogates, nothing overlong); npos if all is.
std::size_t FindInvalidUtf8(std::string_view text);

}  // namespace offshoot::trainer
