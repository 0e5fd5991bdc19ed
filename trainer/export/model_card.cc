#include "trainer/export/model_card.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <string_view>

#include "trainer/error.h"
#include "trainer/export/license_texts.h"
#include "trainer/weights/mapped_file.h"

namespace offshoot::trainer {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string Trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r\"'");
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r\"'") - begin + 1));
}

// The scalar values of license, license_name and license_link in a card's front matter.
License LicenseOfCard(const std::string& text) {
  License license;
  std::istringstream lines(text);
  std::string line;
  if (!std::getline(lines, line) || Trimmed(line) != "---") return license;
  while (std::getline(lines, line) && Trimmed(line) != "---") {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos || line.starts_with(' ') || line.starts_with('-')) continue;
    const std::string key = line.substr(0, colon);
    const std::string value = Trimmed(std::string_view(line).substr(colon + 1));
    if (key == "license") license.id = value;
    if (key == "license_name") license.name = value;
    if (key == "license_link") license.link = value;
  }
  return license;
}

std::string MetadataText(const Json& metadata, const char* key) {
  const auto found = metadata.find(key);
  return found != metadata.end() && found->is_string() ? found->get<std::string>() : "";
}

// A YAML scalar: plain where that is beyond doubt, else double-quoted (JSON's quoting is YAML's).
std::string Scalar(const std::string& text) {
  const char* plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-";
  const bool starts_with_letter =
      !text.empty() && std::isalpha(static_cast<unsigned char>(text[0]));
  const bool is_word = text == "true" || text == "false" || text == "null" || text == "yes" ||
                       text == "no" || text == "on" || text == "off" || text == "n" || text == "y";
  if (starts_with_letter && !is_word && text.find_first_not_of(plain) == std::string::npos) {
    return text;
  }
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", value);
  return text;
}

bool IsKnown(const std::optional<double>& value) { return value && std::isfinite(*value); }

std::string FrontMatter(const ModelCard& card) {
  std::string text = "---\n";
  if (!card.base_model_id.empty()) {
    text += "base_model: " + Scalar(card.base_model_id) + "\nbase_model_relation: adapter\n";
  }
  if (!card.license.id.empty()) text += "license: " + Scalar(card.license.id) + "\n";
  if (!card.license.name.empty()) text += "license_name: " + Scalar(card.license.name) + "\n";
  if (!card.license.link.empty()) text += "license_link: " + Scalar(card.license.link) + "\n";
  text += "library_name: peft\npipeline_tag: text-generation\n";
  if (!card.dataset_ids.empty()) {
    text += "datasets:\n";
    for (const std::string& id : card.dataset_ids) text += "- " + Scalar(id) + "\n";
  }
  text += "tags:\n- lora\n- offshoot\n";
  if (IsKnown(card.eval_loss)) {
    text += "model-index:\n- name: " + Scalar(card.name) +
            "\n  results:\n  - task:\n      type: text-generation\n    dataset:\n"
            "      type: held-out\n      name: Held-out rows of the training data\n"
            "    metrics:\n    - type: loss\n      name: Held-out loss\n      value: " +
            Number(*card.eval_loss) + "\n";
  }
  return text + "---\n\n";
}

std::string Evaluation(const ModelCard& card) {
  if (!IsKnown(card.eval_loss)) return "";
  std::string text = "## Evaluation\nMean loss in nats over " + std::to_string(card.eval_tokens) +
                     " trained tokens of rows that were held out:\n\n| model | held-out loss |\n"
                     "| --- | --- |\n";
  if (IsKnown(card.base_eval_loss)) text += "| base | " + Number(*card.base_eval_loss) + " |\n";
  return text + "| this one | " + Number(*card.eval_loss) + " |\n\n";
}

std::string Usage(const ModelCard& card) {
  const std::string base =
      card.base_model_id.empty() ? "path/to/the/base/model" : card.base_model_id;
  std::string text =
      "## Use\n```python\nfrom peft import PeftModel\n"
      "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
      "base = AutoModelForCausalLM.from_pretrained(\"" +
      base +
      "\")\n"
      "tokenizer = AutoTokenizer.from_pretrained(\"" +
      base +
      "\")\n"
      "model = PeftModel.from_pretrained(base, \"path/to/this/directory\")\n```\n";
  if (card.has_merged) {
    text += "`merged/` holds the same as a plain model, with tokenizer and configuration.\n";
  }
  if (card.has_gguf) {
    text += "`model.gguf` is the merged model for llama.cpp and what is built on it";
    text += card.has_gguf_adapter ? ", `adapter.gguf` the adapter alone (`--lora`).\n" : ".\n";
  }
  if (card.quantisation != Quantisation::kNone) {
    const bool merged = card.has_merged || card.has_gguf;
    text += "\nIt was trained on the base in " +
            std::string(card.quantisation == Quantisation::kNf4 ? "4 bits (NF4" : "8 bits (int8") +
            ", as bitsandbytes defines it)" +
            (merged ? ", and merged into the base's own weights, not into their quantised values"
                    : "") +
            ".\n";
  }
  return text + "\n";
}

std::string Settings(const ModelCard& card) {
  std::string text = "## Training\n" + std::to_string(card.steps) +
                     " optimizer steps. `offshoot.json` has the digests of base, data, settings "
                     "and files.\n\n";
  if (!card.settings.is_object() || card.settings.empty()) return text;
  text += "| setting | value |\n| --- | --- |\n";
  for (const auto& [name, value] : card.settings.items()) {
    text +=
        "| `" + name + "` | " + value.dump(-1, ' ', false, Json::error_handler_t::replace) + " |\n";
  }
  return text + "\n";
}

}  // namespace

License FindLicense(const BaseModelFiles& base) {
  if (base.is_gguf) {
    return {MetadataText(base.gguf_metadata, "general.license"),
            MetadataText(base.gguf_metadata, "general.license.name"),
            MetadataText(base.gguf_metadata, "general.license.link")};
  }
  constexpr std::size_t kMaxCardBytes = std::size_t{8} << 20;
  try {
    const std::string card = base.path + "/README.md";
    if (fs::is_regular_file(card)) {
      const License license = LicenseOfCard(ReadSmallFile(card, kMaxCardBytes));
      if (!license.id.empty()) return license;
    }
    // Where there are two, LICENSE is the code's.
    for (const char* name : {"LICENSE-MODEL", "LICENSE", "LICENSE.txt", "LICENSE.md"}) {
      const std::string text = base.path + "/" + name;
      if (!fs::is_regular_file(text)) continue;
      const std::string words = ReadSmallFile(text, kMaxCardBytes);
      const std::string id = LicenseOfText(words);
      if (!id.empty()) return {id, "", ""};
      const TitledLicense titled = LicenseOfTitle(words);
      if (!titled.id.empty()) return {std::string(titled.id), std::string(titled.name), ""};
      // Terms that nobody here knows: what another file says is not said of the weights.
      if (std::string_view(name) == "LICENSE-MODEL") return {};
    }
  } catch (const Error&) {
    // An unreadable card is no reason to lose a derivative: the licence is then not known.
  }
  return {};
}

std::string FormatModelCard(const ModelCard& card) {
  std::string text = FrontMatter(card);
  text += "# " + card.name + "\n";
  text += "A LoRA adapter for ";
  text += card.base_model_id.empty()
              ? "a base model without a public name"
              : "[" + card.base_model_id + "](https://huggingface.co/" + card.base_model_id + ")";
  if (!card.base_digest.empty()) text += " (`" + card.base_digest + "`)";
  text += ", trained with Offshoot.\n\n";
  return text + Evaluation(card) + Usage(card) + Settings(card);
}

}  // namespace offshoot::trainer
