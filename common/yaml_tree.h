// YAML of job files and settings as a small tree with lines, from untrusted bytes: bounded in size,
// depth and nodes; without aliases, anchors, tags or a second document. Pure, thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace offshoot {

enum class YamlKind { kNull, kScalar, kList, kMap };

struct YamlEntry;

struct YamlNode {
  YamlKind kind = YamlKind::kNull;
  int line = 1;                    // from 1
  std::string text;                // of a scalar
  bool quoted = false;             // then it is text, whatever it looks like
  std::vector<YamlNode> items;     // of a list
  std::vector<YamlEntry> entries;  // of a map, repeated keys included
};

struct YamlEntry {
  YamlNode key;
  YamlNode value;
};

struct YamlBounds {
  std::size_t bytes = 256 << 10;
  std::size_t depth = 16;
  std::size_t nodes = 20'000;
};

// What is wrong with the text as YAML, and where.
struct YamlFault {
  int line = 0;
  std::string message;
};

struct YamlResult {
  YamlNode root;
  std::vector<YamlFault> faults;  // empty, or one
};

// Never throws. An empty text is a kNull root.
YamlResult ParseYamlTree(absl::string_view text, const YamlBounds& bounds = {});

// "text", "a list", ... for messages; of a scalar its text in quotes, shortened to 60 bytes.
std::string DescribeYaml(const YamlNode& node);
// The text in double quotes, escaped for YAML and JSON alike.
std::string QuoteYaml(absl::string_view text);

}  // namespace offshoot
