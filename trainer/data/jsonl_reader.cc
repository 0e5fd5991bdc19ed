#include "trainer/data/jsonl_reader.h"

#include <algorithm>
#include <filesystem>

#include "trainer/error.h"

namespace offshoot::trainer {
namespace {

bool IsBlank(const std::string& text) {
  return text.find_first_not_of(" \t\r\n") == std::string::npos;
}

// The deepest nesting of brackets outside strings.
int Depth(const std::string& text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

// nlohmann's message without its own prefix "[json.exception.parse_error.101] ".
std::string Complaint(const nlohmann::json::exception& error) {
  const std::string text = error.what();
  const std::size_t end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

}  // namespace

JsonlReader::JsonlReader(const std::string& path, const std::string& shown)
    : shown_(shown.empty() ? path : shown), file_(path, std::ios::binary) {
  if (!std::filesystem::exists(path)) {
    throw Error(Reason::kBadData, "data set " + shown_ + " does not exist");
  }
  if (std::filesystem::is_directory(path)) {
    throw Error(Reason::kBadData, "data set " + shown_ + " is a directory; give a JSONL file");
  }
  if (!file_) {
    throw Error(Reason::kBadData, "data set " + shown_ + " cannot be read; check its permissions");
  }
}

bool JsonlReader::Next(JsonlLine* line) {
  std::streambuf* const buffer = file_.rdbuf();
  constexpr int kEnd = std::char_traits<char>::eof();
  for (;;) {
    line->text.clear();
    int c = buffer->sbumpc();
    if (c == kEnd) return false;
    for (; c != kEnd && c != '\n'; c = buffer->sbumpc()) {
      if (line->text.size() == kMaxLineBytes) {
        throw Error(Reason::kBadData, shown_ + " line " + std::to_string(number_ + 1) +
                                          " is longer than 256 MiB; is this a JSONL file?");
      }
      line->text.push_back(static_cast<char>(c));
    }
    line->number = ++number_;
    // A byte order mark in front of the first line is no part of the data.
    if (number_ == 1 && line->text.starts_with("\xEF\xBB\xBF")) line->text.erase(0, 3);
    if (!IsBlank(line->text)) return true;
  }
}

std::size_t FindInvalidUtf8(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  for (std::size_t i = 0; i < text.size();) {
    const unsigned char first = byte(i);
    if (first < 0x80) {
      ++i;
      continue;
    }
    const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || i + length > text.size()) return i;
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return i;
    }
    const unsigned char second = byte(i + 1);
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
        (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) {
      return i;
    }
    i += length;
  }
  return std::string_view::npos;
}

nlohmann::ordered_json ParseJsonLine(const std::string& text) {
  if (const std::size_t at = FindInvalidUtf8(text); at != std::string_view::npos) {
    throw Error(Reason::kBadData, "it is not valid UTF-8 at byte " + std::to_string(at + 1) +
                                      "; save the file as UTF-8");
  }
  if (Depth(text) > kMaxJsonDepth) {
    throw Error(Reason::kBadData,
                "its JSON is nested more than " + std::to_string(kMaxJsonDepth) + " deep");
  }
  nlohmann::ordered_json value;
  try {
    value = nlohmann::ordered_json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw Error(Reason::kBadData, "it is not valid JSON (" + Complaint(error) +
                                      "); each line must be one JSON object");
  }
  if (!value.is_object()) {
    throw Error(Reason::kBadData, std::string("it is a JSON ") + value.type_name() +
                                      "; each line must be one JSON object");
  }
  return value;
}

}  // namespace offshoot::trainer
