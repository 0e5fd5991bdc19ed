#include "common/settings.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/files.h"
#include "common/nearest.h"
#include "common/quantity.h"
#include "common/status_macros.h"

namespace offshoot {
namespace {

bool IsPlainScalar(const YamlNode& node) { return node.kind == YamlKind::kScalar && !node.quoted; }

}  // namespace

void Settings::Add(Setting setting) { settings_.push_back(std::move(setting)); }

void Settings::AddText(const std::string& key, std::string* field, const std::string& meaning) {
  Add({key, "a text", meaning,
       [field](const YamlNode& node) {
         if (node.kind != YamlKind::kScalar) return false;
         *field = node.text;
         return true;
       },
       [field] { return QuoteYaml(*field); }});
}

void Settings::AddChoice(const std::string& key, std::string* field,
                         std::vector<std::string> choices, const std::string& meaning) {
  const std::string allowed = absl::StrCat("one of ", absl::StrJoin(choices, ", "));
  Add({key, allowed, meaning,
       [field, choices = std::move(choices)](const YamlNode& node) {
         if (std::find(choices.begin(), choices.end(), node.text) == choices.end()) return false;
         *field = node.text;
         return true;
       },
       [field] { return *field; }});
}

void Settings::AddInteger(const std::string& key, std::int64_t* field, std::int64_t lowest,
                          std::int64_t highest, const std::string& unit,
                          const std::string& meaning) {
  Add({key,
       absl::StrCat("a whole number from ", lowest, " to ", highest,
                    unit.empty() ? "" : absl::StrCat(" (", unit, ")")),
       meaning,
       [=](const YamlNode& node) {
         std::int64_t value = 0;
         if (!IsPlainScalar(node) || !absl::SimpleAtoi(node.text, &value)) return false;
         if (value < lowest || value > highest) return false;
         *field = value;
         return true;
       },
       [field] { return absl::StrCat(*field); }});
}

void Settings::AddNumber(const std::string& key, double* field, double lowest, double highest,
                         const std::string& unit, const std::string& meaning) {
  Add({key,
       absl::StrCat("a number from ", lowest, " to ", highest,
                    unit.empty() ? "" : absl::StrCat(" (", unit, ")")),
       meaning,
       [=](const YamlNode& node) {
         double value = 0;
         if (!IsPlainScalar(node) || !absl::SimpleAtod(node.text, &value)) return false;
         if (!(value >= lowest && value <= highest)) return false;
         *field = value;
         return true;
       },
       [field] { return absl::StrCat(*field); }});
}

void Settings::AddTruth(const std::string& key, bool* field, const std::string& meaning) {
  Add({key, "true or false", meaning,
       [field](const YamlNode& node) {
         if (!IsPlainScalar(node) || (node.text != "true" && node.text != "false")) return false;
         *field = node.text == "true";
         return true;
       },
       [field]() -> std::string { return *field ? "true" : "false"; }});
}

void Settings::AddMilliseconds(const std::string& key, absl::Duration* field, absl::Duration lowest,
                               absl::Duration highest, const std::string& meaning) {
  const std::int64_t from = absl::ToInt64Milliseconds(lowest);
  const std::int64_t to = absl::ToInt64Milliseconds(highest);
  Add({key, absl::StrCat("a whole number from ", from, " to ", to, " (milliseconds)"), meaning,
       [=](const YamlNode& node) {
         std::int64_t value = 0;
         if (!IsPlainScalar(node) || !absl::SimpleAtoi(node.text, &value)) return false;
         if (value < from || value > to) return false;
         *field = absl::Milliseconds(value);
         return true;
       },
       [field] { return absl::StrCat(absl::ToInt64Milliseconds(*field)); }});
}

void Settings::AddBytes(const std::string& key, std::int64_t* field, std::int64_t lowest,
                        std::int64_t highest, const std::string& meaning) {
  Add({key,
       absl::StrCat("a size such as 512MiB or 8GiB, from ", FormatBytes(lowest), " to ",
                    FormatBytes(highest)),
       meaning,
       [=](const YamlNode& node) {
         std::int64_t value = 0;
         if (!IsPlainScalar(node) || !ParseBytes(node.text, &value)) return false;
         if (value < lowest || value > highest) return false;
         *field = value;
         return true;
       },
       [field]() -> std::string {
         constexpr std::int64_t kMebi = 1 << 20;
         return *field % kMebi == 0 && *field > 0 ? absl::StrCat(*field / kMebi, "MiB")
                                                  : absl::StrCat(*field);
       }});
}

void Settings::AddTextList(const std::string& key, std::vector<std::string>* field,
                           const std::string& meaning) {
  Add({key, "a list of texts", meaning,
       [field](const YamlNode& node) {
         if (node.kind != YamlKind::kList) return false;
         std::vector<std::string> values;
         for (const YamlNode& item : node.items) {
           if (item.kind != YamlKind::kScalar) return false;
           values.push_back(item.text);
         }
         *field = std::move(values);
         return true;
       },
       [field] { return nlohmann::json(*field).dump(); }});
}

void Settings::AddLabels(const std::string& key, std::map<std::string, std::string>* field,
                         const std::string& meaning) {
  Add({key, "a map of texts", meaning,
       [field](const YamlNode& node) {
         if (node.kind != YamlKind::kMap) return false;
         std::map<std::string, std::string> values;
         for (const auto& [name, value] : node.entries) {
           if (name.kind != YamlKind::kScalar || value.kind != YamlKind::kScalar) return false;
           values[name.text] = value.text;
         }
         *field = std::move(values);
         return true;
       },
       [field] { return nlohmann::json(*field).dump(); }});
}

void Settings::AddTable(const std::string& key, Table* field, std::vector<Column> columns,
                        const std::string& meaning) {
  std::string allowed = "a map of names to maps of ";
  for (const Column& column : columns) {
    absl::StrAppend(&allowed, &column == &columns.front() ? "" : ", ", column.key, " (",
                    column.whole ? "a whole number" : "a number", " from ", column.lowest, " to ",
                    column.highest, "; ", column.fallback, " where not given)");
  }
  Add({key, allowed, meaning,
       [field, columns](const YamlNode& node) {
         if (node.kind != YamlKind::kMap) return false;
         Table table;
         for (const auto& [name, row] : node.entries) {
           if (name.kind != YamlKind::kScalar || row.kind != YamlKind::kMap) return false;
           std::map<std::string, double>& values = table[name.text];
           for (const Column& column : columns) values[column.key] = column.fallback;
           for (const auto& [cell, number] : row.entries) {
             const auto column =
                 std::find_if(columns.begin(), columns.end(),
                              [&name = cell.text](const Column& each) { return each.key == name; });
             double value = 0;
             if (column == columns.end() || !IsPlainScalar(number) ||
                 !absl::SimpleAtod(number.text, &value) ||
                 !(value >= column->lowest && value <= column->highest) ||
                 (column->whole && value != std::floor(value))) {
               return false;
             }
             values[column->key] = value;
           }
         }
         *field = std::move(table);
         return true;
       },
       [field] { return nlohmann::json(*field).dump(); }});
}

absl::Status Settings::Read(absl::string_view yaml, const std::string& file_name) {
  const YamlResult tree = ParseYamlTree(yaml);
  std::vector<std::string> faults;
  const auto fault = [&faults](int line, const std::string& message) {
    faults.push_back(absl::StrCat("  line ", line, ": ", message));
  };
  for (const YamlFault& each : tree.faults) fault(each.line, each.message);
  if (faults.empty() && tree.root.kind != YamlKind::kMap && tree.root.kind != YamlKind::kNull) {
    fault(tree.root.line, "the file is not a map; write `key: value` lines");
  }
  std::vector<std::string> keys;
  for (const Setting& setting : settings_) keys.push_back(setting.key);
  std::set<std::string> seen;
  for (const auto& [key, value] : tree.root.entries) {
    const auto found =
        std::find_if(settings_.begin(), settings_.end(),
                     [&name = key.text](const Setting& each) { return each.key == name; });
    if (found == settings_.end()) {
      const std::string nearest = NearestWord(key.text, keys);
      fault(key.line,
            absl::StrCat(DescribeYaml(key), " is not a setting; ",
                         nearest.empty() ? absl::StrCat("there are ", absl::StrJoin(keys, ", "))
                                         : absl::StrCat("did you mean ", nearest, "?")));
    } else if (!seen.insert(key.text).second) {
      fault(key.line, absl::StrCat(key.text, " is given again; keep one of the two"));
    } else if (!found->read(value)) {
      fault(value.line, absl::StrCat(key.text, ": ", DescribeYaml(value), " is not right; give ",
                                     found->allowed));
    }
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the settings in ", file_name, " are wrong:\n", absl::StrJoin(faults, "\n")));
}

absl::Status Settings::ReadFrom(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return Read(text, path);
}

std::string Settings::Document() const {
  std::string text;
  for (const Setting& setting : settings_) {
    absl::StrAppend(&text, "# ", setting.meaning, "\n# Value: ", setting.allowed, ".\n",
                    setting.key, ": ", setting.value(), "\n\n");
  }
  if (!text.empty()) text.pop_back();
  return text;
}

}  // namespace offshoot
