// The one table of the job file's keys. Parsing, formatting, the trainer's JSON and
// docs/job-file.md are all made from it: a key is added here and nowhere else. Pure, thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

#include "common/job_spec.h"

namespace offshoot {

enum class KeyType {
  kName,       // letters, digits, '.', '_', '-'
  kModelId,    // like a name, with '/' and '@'
  kReference,  // a path, sha256:<digest> or a name
  kChoice,     // one of choices
  kInteger,
  kNumber,
  kTruth,
  kDuration,    // 90s, 30m, 2h, 1d, or seconds; kept in seconds
  kBytes,       // 512MiB, 8GiB, or bytes; kept in bytes
  kModuleList,  // one text or a list of them
  kChoiceList,  // a list from choices
  kTextList,    // one text or a list of them
  kLabels,      // a map of texts
};

struct KeyInfo {
  const char* key;  // dotted below the top: resources.ranks; of a data set: path
  KeyType type;
  const char* unit;     // "" where there is none
  const char* source;   // whose name it is
  const char* meaning;  // a sentence or two for docs/job-file.md
  double lowest = -std::numeric_limits<double>::infinity();
  double highest = std::numeric_limits<double>::infinity();
  bool above_lowest = false;   // lowest itself is not allowed
  bool below_highest = false;  // highest itself is not allowed
  std::vector<const char*> choices = {};
  bool required = false;
  bool preflight = false;  // preflight's answer depends on it
};

using KeyField = std::variant<std::string*, std::int64_t*, double*, bool*,
                              std::vector<std::string>*, std::map<std::string, std::string>*>;

// A row of the table, and the place in one object that holds its value.
struct BoundKey {
  const KeyInfo* info;
  KeyField field;
};

// Rows in the order of the documentation. "datasets" is a list of objects and has a table of its
// own.
std::vector<BoundKey> BindJobKeys(JobSpec& spec);
std::vector<BoundKey> BindDatasetKeys(DatasetSpec& dataset);

// The value as JSON: durations in seconds, sizes in bytes, "" as null where nothing was given.
nlohmann::ordered_json KeyValueJson(const BoundKey& key);

// What may stand there, for messages and documentation: "a whole number from 1 to 1024".
std::string AllowedValues(const KeyInfo& info);

// A key of another tool, or an old habit, and what to write here; "" when it is not a known one.
std::string RemedyForForeignKey(const std::string& key);

// The tables of docs/job-file.md, Markdown.
std::string JobFileTables();

}  // namespace offshoot
