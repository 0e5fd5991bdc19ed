#include "common/job_spec_reader.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/digest.h"
#include "common/job_spec_table.h"
#include "common/nearest.h"
#include "common/quantity.h"

namespace offshoot {
namespace {

constexpr std::size_t kMaxNameBytes = 100;
constexpr std::size_t kMaxModelIdBytes = 200;
constexpr std::size_t kMaxReferenceBytes = 4096;
constexpr std::size_t kMaxDatasets = 64;
constexpr std::size_t kMaxListItems = 256;
constexpr std::size_t kMaxLabels = 64;
constexpr std::size_t kMaxLabelBytes = 256;

bool IsMadeOf(absl::string_view text, absl::string_view extra) {
  return std::all_of(text.begin(), text.end(), [extra](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           extra.find(c) != absl::string_view::npos;
  });
}

bool HasControlCharacter(absl::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_iscntrl(static_cast<unsigned char>(c)); });
}

class Reader {
 public:
  Reader(GivenKeys& given, std::vector<SpecFault>& faults) : given_(given), faults_(faults) {}

  // Reads a map whose keys are those of `keys` below `prefix` ("" or "resources."), shown to the
  // user below `shown`. `sections` are the other keys that may stand there.
  void ReadMap(const YamlNode& node, const std::string& prefix, const std::string& shown,
               const std::vector<BoundKey>& keys, const std::vector<std::string>& sections) {
    std::vector<std::string> names = sections;
    for (const BoundKey& key : keys) {
      absl::string_view name = key.info->key;
      if (!absl::ConsumePrefix(&name, prefix) || absl::StrContains(name, '.')) continue;
      names.emplace_back(name);
    }
    for (const auto& [key_node, value] : node.entries) {
      const std::string name = key_node.text;
      const std::string full = shown + name;
      if (key_node.kind != YamlKind::kScalar) {
        Fault(key_node, shown, absl::StrCat(DescribeYaml(key_node), " cannot be a key"));
        continue;
      }
      if (!given_.emplace(full, key_node.line).second) {
        Fault(
            key_node, full,
            absl::StrCat("is given again (first in line ", given_[full], "); keep one of the two"));
        continue;
      }
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        Fault(key_node, full, UnknownKey(name, names, shown.empty()));
        continue;
      }
      for (const BoundKey& key : keys) {
        if (key.info->key == prefix + name) ReadValue(value, full, key);
      }
    }
    for (const BoundKey& key : keys) {
      absl::string_view name = key.info->key;
      if (!key.info->required || !absl::ConsumePrefix(&name, prefix)) continue;
      const std::string full = absl::StrCat(shown, name);
      if (given_.count(full) == 0) {
        faults_.push_back({shown.empty() ? 0 : node.line, full,
                           absl::StrCat("is missing; give ", AllowedValues(*key.info))});
      }
    }
  }

  void Fault(const YamlNode& node, const std::string& key, const std::string& message) {
    faults_.push_back({node.line, key, message});
  }

 private:
  static std::string UnknownKey(const std::string& name, const std::vector<std::string>& names,
                                bool at_top) {
    const std::string nearest = NearestWord(name, names);
    const std::string remedy = at_top ? RemedyForForeignKey(name) : "";
    if (!remedy.empty()) return absl::StrCat("is not a key here; ", remedy);
    if (!nearest.empty()) return absl::StrCat("is not a key here; did you mean ", nearest, "?");
    return "is not a key here; `offshoot validate --keys` lists those there are";
  }

  void Wrong(const YamlNode& node, const std::string& key, const KeyInfo& info) {
    const std::string quoted =
        node.quoted && node.kind == YamlKind::kScalar ? " (quoted, so a text)" : "";
    Fault(node, key,
          absl::StrCat(DescribeYaml(node), quoted, " is not right; give ", AllowedValues(info)));
  }

  void ReadValue(const YamlNode& node, const std::string& key, const BoundKey& bound) {
    const KeyInfo& info = *bound.info;
    if (node.kind == YamlKind::kNull) {
      // `init_adapter:` and `base_model_id: null` say "none", which is their default.
      const bool may_be_none = std::holds_alternative<std::string*>(bound.field) &&
                               !info.required && info.choices.empty();
      if (!may_be_none) Fault(node, key, "has no value; give one or remove the line");
      return;
    }
    switch (info.type) {
      case KeyType::kName:
      case KeyType::kModelId:
      case KeyType::kReference:
      case KeyType::kChoice:
        return ReadText(node, key, info, *std::get<std::string*>(bound.field));
      case KeyType::kInteger:
      case KeyType::kDuration:
      case KeyType::kBytes:
        return ReadInteger(node, key, info, *std::get<std::int64_t*>(bound.field));
      case KeyType::kNumber:
        return ReadNumber(node, key, info, *std::get<double*>(bound.field));
      case KeyType::kTruth:
        return ReadTruth(node, key, info, *std::get<bool*>(bound.field));
      case KeyType::kModuleList:
      case KeyType::kChoiceList:
      case KeyType::kTextList:
        return ReadList(node, key, info, *std::get<std::vector<std::string>*>(bound.field));
      case KeyType::kLabels:
        return ReadLabels(node, key, info,
                          *std::get<std::map<std::string, std::string>*>(bound.field));
    }
  }

  void ReadText(const YamlNode& node, const std::string& key, const KeyInfo& info,
                std::string& field) {
    if (node.kind != YamlKind::kScalar) return Wrong(node, key, info);
    const std::string& text = node.text;
    switch (info.type) {
      case KeyType::kChoice:
        return ReadChoice(node, key, info, field);
      case KeyType::kName:
        if (text.empty() || text.size() > kMaxNameBytes || !IsMadeOf(text, "._-") ||
            !absl::ascii_isalnum(static_cast<unsigned char>(text[0]))) {
          return Fault(
              node, key,
              absl::StrCat(DescribeYaml(node), " is not a name; use at most ", kMaxNameBytes,
                           " letters, digits, '.', '_' and '-', beginning "
                           "with a letter or digit"));
        }
        break;
      case KeyType::kModelId:
        if (text.empty() || text.size() > kMaxModelIdBytes || !IsMadeOf(text, "._-/@") ||
            text[0] == '/' || absl::StrContains(text, "..")) {
          return Fault(node, key,
                       absl::StrCat(DescribeYaml(node),
                                    " is not a model's name; write it as its hub does, "
                                    "e.g. Qwen/Qwen3-0.6B"));
        }
        break;
      default:
        if (text.empty() || text.size() > kMaxReferenceBytes || HasControlCharacter(text)) {
          return Wrong(node, key, info);
        }
        if (absl::StartsWith(text, "sha256:") && !IsDigest(text)) {
          return Fault(node, key,
                       absl::StrCat(DescribeYaml(node),
                                    " is not a digest; write sha256: and 64 lower-case "
                                    "hex digits"));
        }
        break;
    }
    field = text;
  }

  void ReadChoice(const YamlNode& node, const std::string& key, const KeyInfo& info,
                  std::string& field) {
    const std::vector<std::string> choices(info.choices.begin(), info.choices.end());
    if (node.kind == YamlKind::kScalar &&
        std::find(choices.begin(), choices.end(), node.text) != choices.end()) {
      field = node.text;
      return;
    }
    const std::string nearest =
        node.kind == YamlKind::kScalar ? NearestWord(node.text, choices) : "";
    Fault(node, key,
          absl::StrCat(DescribeYaml(node), " is not one of ", absl::StrJoin(choices, ", "),
                       nearest.empty() ? "; write one of them"
                                       : absl::StrCat("; did you mean ", nearest, "?")));
  }

  void ReadInteger(const YamlNode& node, const std::string& key, const KeyInfo& info,
                   std::int64_t& field) {
    const bool scalar = node.kind == YamlKind::kScalar;
    if (scalar && node.text == "auto" && key == "per_device_train_batch_size") {
      field = kAutomaticRows;
      return;
    }
    std::int64_t value = 0;
    bool right = false;
    if (info.type == KeyType::kInteger) {
      right = scalar && !node.quoted && absl::SimpleAtoi(node.text, &value);
    } else if (info.type == KeyType::kDuration) {
      right = scalar && ParseSeconds(node.text, &value);
    } else {
      right = scalar && ParseBytes(node.text, &value);
    }
    if (!right) return Wrong(node, key, info);
    const auto number = static_cast<double>(value);
    if (number < info.lowest || number > info.highest) return OutOfRange(node, key, info);
    field = value;
  }

  void ReadNumber(const YamlNode& node, const std::string& key, const KeyInfo& info,
                  double& field) {
    double value = 0;
    if (node.kind != YamlKind::kScalar || node.quoted || !absl::SimpleAtod(node.text, &value) ||
        !std::isfinite(value)) {
      return Wrong(node, key, info);
    }
    if (value < info.lowest || value > info.highest ||
        (info.above_lowest && value == info.lowest) ||
        (info.below_highest && value == info.highest)) {
      return OutOfRange(node, key, info);
    }
    field = value == 0 ? 0 : value;  // -0 is 0
  }

  void OutOfRange(const YamlNode& node, const std::string& key, const KeyInfo& info) {
    Fault(node, key,
          absl::StrCat(DescribeYaml(node), " is out of range; give ", AllowedValues(info)));
  }

  void ReadTruth(const YamlNode& node, const std::string& key, const KeyInfo& info, bool& field) {
    if (node.kind == YamlKind::kScalar && !node.quoted) {
      const std::string text = absl::AsciiStrToLower(node.text);
      if (text == "true" || text == "false") {
        field = text == "true";
        return;
      }
    }
    Wrong(node, key, info);
  }

  void ReadList(const YamlNode& node, const std::string& key, const KeyInfo& info,
                std::vector<std::string>& field) {
    const std::vector<YamlNode> one{node};
    const std::vector<YamlNode>& items = node.kind == YamlKind::kScalar ? one : node.items;
    if (node.kind == YamlKind::kMap) return Wrong(node, key, info);
    if (items.empty() || items.size() > kMaxListItems) {
      return Fault(node, key,
                   absl::StrCat("has ", items.size(), " entries; give 1 to ", kMaxListItems));
    }
    std::vector<std::string> values;
    for (const YamlNode& item : items) {
      std::string value;
      const std::size_t before = faults_.size();
      if (info.type == KeyType::kChoiceList) {
        ReadChoice(item, key, info, value);
      } else if (info.type == KeyType::kTextList) {
        if (item.kind != YamlKind::kScalar || item.text.empty() ||
            item.text.size() > kMaxNameBytes || HasControlCharacter(item.text)) {
          Wrong(item, key, info);
        }
        value = item.text;
      } else if (item.kind != YamlKind::kScalar || item.text.empty() ||
                 item.text.size() > kMaxNameBytes || !IsMadeOf(item.text, "._-*")) {
        Fault(item, key,
              absl::StrCat(DescribeYaml(item),
                           " is not a module's name; write one "
                           "such as q_proj, or all-linear"));
      } else {
        value = item.text;
      }
      if (faults_.size() > before) continue;
      if (std::find(values.begin(), values.end(), value) != values.end()) {
        Fault(item, key, absl::StrCat(DescribeYaml(item), " is named twice; remove one"));
        continue;
      }
      values.push_back(std::move(value));
    }
    field = std::move(values);
  }

  void ReadLabels(const YamlNode& node, const std::string& key, const KeyInfo& info,
                  std::map<std::string, std::string>& field) {
    if (node.kind != YamlKind::kMap) return Wrong(node, key, info);
    if (node.entries.size() > kMaxLabels) {
      return Fault(
          node, key,
          absl::StrCat("has ", node.entries.size(), " entries; give at most ", kMaxLabels));
    }
    for (const auto& [name, value] : node.entries) {
      if (name.kind != YamlKind::kScalar || value.kind != YamlKind::kScalar || name.text.empty() ||
          name.text.size() > kMaxLabelBytes || value.text.size() > kMaxLabelBytes ||
          HasControlCharacter(name.text) || HasControlCharacter(value.text)) {
        Fault(name, key,
              absl::StrCat(DescribeYaml(name), ": ", DescribeYaml(value),
                           " is not a pair of texts of at most ", kMaxLabelBytes, " bytes"));
      } else if (!field.emplace(name.text, value.text).second) {
        Fault(name, key, absl::StrCat(DescribeYaml(name), " is given twice; keep one"));
      }
    }
  }

  GivenKeys& given_;
  std::vector<SpecFault>& faults_;
};

void ReadDatasets(const YamlNode& node, JobSpec& spec, Reader& reader) {
  if (node.kind != YamlKind::kList) {
    return reader.Fault(node, "datasets",
                        absl::StrCat(DescribeYaml(node),
                                     " is not a list; write `- path: FILE` and "
                                     "`type: chat` below it"));
  }
  if (node.items.empty() || node.items.size() > kMaxDatasets) {
    return reader.Fault(
        node, "datasets",
        absl::StrCat("has ", node.items.size(), " entries; give 1 to ", kMaxDatasets));
  }
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    const YamlNode& item = node.items[i];
    const std::string shown = absl::StrCat("datasets[", i, "]");
    DatasetSpec dataset;
    if (item.kind != YamlKind::kMap) {
      reader.Fault(item, shown,
                   absl::StrCat(DescribeYaml(item),
                                " is not a map; write `path: "
                                "FILE` and `type: chat`"));
    } else {
      reader.ReadMap(item, "", shown + ".", BindDatasetKeys(dataset), {});
    }
    spec.datasets.push_back(std::move(dataset));
  }
}

}  // namespace

void ReadJobSpec(const YamlNode& root, JobSpec& spec, GivenKeys& given,
                 std::vector<SpecFault>& faults) {
  if (root.kind == YamlKind::kNull) {
    faults.push_back({0, "", "the file is empty; give at least base_model and datasets"});
    return;
  }
  if (root.kind != YamlKind::kMap) {
    faults.push_back({root.line, "",
                      absl::StrCat("the file is ", DescribeYaml(root),
                                   ", not a map; write `key: value` lines")});
    return;
  }
  Reader reader(given, faults);
  const std::vector<BoundKey> keys = BindJobKeys(spec);
  const std::vector<std::string> sections{"datasets", "resources", "sync", "publish"};
  reader.ReadMap(root, "", "", keys, sections);
  std::map<std::string, bool> done;  // of a repeated section only the first is read
  for (const auto& [key, value] : root.entries) {
    if (key.kind != YamlKind::kScalar || done[key.text]) continue;
    if (key.text == "datasets") {
      ReadDatasets(value, spec, reader);
    } else if (key.text == "resources" || key.text == "sync" || key.text == "publish") {
      if (value.kind == YamlKind::kMap) {
        reader.ReadMap(value, key.text + ".", key.text + ".", keys, {});
      } else if (key.text == "sync") {
        if (value.kind != YamlKind::kScalar || value.text != "every_step") {
          reader.Fault(value, key.text,
                       absl::StrCat(DescribeYaml(value),
                                    " is not right; give every_step, or local_steps: N below it"));
        }
      } else {
        reader.Fault(value, key.text, absl::StrCat(DescribeYaml(value), " is not a map"));
      }
    } else {
      continue;
    }
    done[key.text] = true;
  }
  if (!done["datasets"]) {
    faults.push_back({0, "datasets", "is missing; give a list of `path` and `type`"});
  }
}

}  // namespace offshoot
