#include "trainer/commands/arguments.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <utility>

namespace offshoot::trainer {
namespace {

// Levenshtein distance, for "did you mean".
std::size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) {
    row[j] = j;
  }
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
}

}  // namespace

Arguments::Arguments(std::string command, std::string summary, std::vector<ArgumentSpec> specs)
    : command_(std::move(command)), summary_(std::move(summary)), specs_(std::move(specs)) {}

void Arguments::Refuse(const std::string& message) const {
  throw UsageError(message + " See offshoot-trainer " + command_ + " --help.");
}

const ArgumentSpec* Arguments::Find(const std::string& name) const {
  for (const ArgumentSpec& spec : specs_) {
    if (spec.name == name) {
      return &spec;
    }
  }
  return nullptr;
}

bool Arguments::Parse(const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (word == "--help" || word == "-h") {
      std::fputs(Help().c_str(), stdout);
      return false;
    }
  }
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (!word.starts_with("--")) {
      Refuse("'" + word + "' is no argument of " + command_ + "; arguments begin with --.");
    }
    const std::size_t equals = word.find('=');
    const std::string name = word.substr(2, equals == std::string::npos ? equals : equals - 2);
    const ArgumentSpec* spec = Find(name);
    if (spec == nullptr) {
      std::string nearest;
      std::size_t best = name.size() / 2 + 1;
      for (const ArgumentSpec& known : specs_) {
        if (const std::size_t distance = EditDistance(name, known.name); distance < best) {
          best = distance;
          nearest = known.name;
        }
      }
      Refuse("--" + name + " is unknown." +
             (nearest.empty() ? "" : " Did you mean --" + nearest + "?"));
    }
    if (values_.count(name) != 0) {
      Refuse("--" + name + " is given twice.");
    }
    if (spec->value_name.empty()) {
      if (equals != std::string::npos) {
        Refuse("--" + name + " takes no value.");
      }
      values_[name] = "true";
    } else if (equals != std::string::npos) {
      values_[name] = word.substr(equals + 1);
    } else if (i + 1 < words.size()) {
      values_[name] = words[++i];
    } else {
      Refuse("--" + name + " needs a value: " + spec->value_name + ".");
    }
  }
  for (const ArgumentSpec& spec : specs_) {
    if (spec.required && values_.count(spec.name) == 0) {
      Refuse("--" + spec.name + " " + spec.value_name + " is missing.");
    }
    if (!spec.fallback.empty()) {
      values_.try_emplace(spec.name, spec.fallback);
    }
  }
  return true;
}

bool Arguments::Has(const std::string& name) const { return values_.count(name) != 0; }

const std::string& Arguments::Text(const std::string& name) const {
  static const std::string kEmpty;
  const auto found = values_.find(name);
  return found == values_.end() ? kEmpty : found->second;
}

std::int64_t Arguments::Integer(const std::string& name, std::int64_t minimum,
                                std::int64_t maximum) const {
  const std::string& text = Text(name);
  std::int64_t value = 0;
  const auto [stop, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || stop != text.data() + text.size() || value < minimum ||
      value > maximum) {
    Refuse("--" + name + " is '" + text + "'; it must be a whole number from " +
           std::to_string(minimum) + " to " + std::to_string(maximum) + ".");
  }
  return value;
}

double Arguments::Number(const std::string& name, double minimum, double maximum) const {
  const std::string& text = Text(name);
  double value = 0;
  const auto [stop, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || stop != text.data() + text.size() ||
      !(value >= minimum && value <= maximum)) {
    std::ostringstream message;
    message << "--" << name << " is '" << text << "'; it must be a number from " << minimum
            << " to " << maximum << ".";
    Refuse(message.str());
  }
  return value;
}

bool Arguments::Switch(const std::string& name) const { return Has(name); }

std::string Arguments::Help() const {
  std::ostringstream text;
  text << "offshoot-trainer " << command_ << ": " << summary_ << "\n\n";
  for (const ArgumentSpec& spec : specs_) {
    std::string left = "  --" + spec.name + (spec.value_name.empty() ? "" : " " + spec.value_name);
    left.resize(std::max<std::size_t>(left.size() + 2, 28), ' ');
    text << left << spec.help;
    if (spec.required) {
      text << " (required)";
    } else if (!spec.fallback.empty()) {
      text << " (default " << spec.fallback << ")";
    }
    text << "\n";
  }
  return text.str();
}

}  // namespace offshoot::trainer
