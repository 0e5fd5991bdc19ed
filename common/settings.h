// Settings of a program from a YAML file: flat, strict, each with its default, range and meaning.
// A program declares them once; the same declaration reads a file and writes the documented one.
//
//   Options options;
//   Settings settings;
//   settings.AddInteger("max_jobs", &options.max_jobs, 1, 1'000'000, "jobs", "Jobs kept at once.");
//   RETURN_IF_ERROR(settings.ReadFrom("coordinator.yaml"));
//
// Not thread-safe; the fields outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/yaml_tree.h"

namespace offshoot {

class Settings {
 public:
  void AddText(const std::string& key, std::string* field, const std::string& meaning);
  void AddChoice(const std::string& key, std::string* field, std::vector<std::string> choices,
                 const std::string& meaning);
  // Both ends are allowed. unit is for the documentation: "jobs", "bytes", ...
  void AddInteger(const std::string& key, std::int64_t* field, std::int64_t lowest,
                  std::int64_t highest, const std::string& unit, const std::string& meaning);
  void AddNumber(const std::string& key, double* field, double lowest, double highest,
                 const std::string& unit, const std::string& meaning);
  void AddTruth(const std::string& key, bool* field, const std::string& meaning);
  // Whole milliseconds; by custom the key ends in _ms.
  void AddMilliseconds(const std::string& key, absl::Duration* field, absl::Duration lowest,
                       absl::Duration highest, const std::string& meaning);
  // 512MiB, 8GiB, or bytes.
  void AddBytes(const std::string& key, std::int64_t* field, std::int64_t lowest,
                std::int64_t highest, const std::string& meaning);
  void AddTextList(const std::string& key, std::vector<std::string>* field,
                   const std::string& meaning);
  void AddLabels(const std::string& key, std::map<std::string, std::string>* field,
                 const std::string& meaning);

  // A map of names to maps of numbers: `research: {weight: 2, max_jobs: 8}`. The columns that are
  // not given keep what `fallback` says.
  struct Column {
    std::string key;
    double fallback = 0;
    double lowest = 0;
    double highest = 0;
    bool whole = false;
  };
  using Table = std::map<std::string, std::map<std::string, double>>;
  void AddTable(const std::string& key, Table* field, std::vector<Column> columns,
                const std::string& meaning);

  // All faults in one INVALID_ARGUMENT, a line each, with the nearest right key for a wrong one.
  // Fields whose key is absent keep their value.
  absl::Status Read(absl::string_view yaml, const std::string& file_name);
  absl::Status ReadFrom(const std::string& path);

  // A file with every setting at its present value, its unit and meaning as comments.
  std::string Document() const;

 private:
  struct Setting {
    std::string key;
    std::string allowed;  // "a whole number from 1 to 9 (jobs)"
    std::string meaning;
    std::function<bool(const YamlNode&)> read;  // false: not one of `allowed`
    std::function<std::string()> value;         // as YAML
  };
  void Add(Setting setting);

  std::vector<Setting> settings_;
};

}  // namespace offshoot
