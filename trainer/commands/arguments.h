// A small, strict command line for the trainer's commands: --name value, --name=value and switches.
// Anything else is refused with the nearest known name. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace offshoot::trainer {

// Wrong use: main prints the message and ends with 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct ArgumentSpec {
  std::string name;        // without the dashes
  std::string value_name;  // "FILE"; empty: a switch without a value
  std::string help;
  bool required = false;
  std::string fallback = {};  // used when the argument is not given; shown in --help
};

class Arguments {
 public:
  // command: "train"; summary: one line for --help.
  Arguments(std::string command, std::string summary, std::vector<ArgumentSpec> specs);

  // False if --help was asked for (and has been printed to stdout). Throws UsageError for an
  // unknown or repeated argument, a missing value or a missing required argument.
  bool Parse(const std::vector<std::string>& words);

  // Of declared names only. Given or by fallback.
  bool Has(const std::string& name) const;  // given, or has a fallback
  const std::string& Text(const std::string& name) const;
  // Throw UsageError naming the argument for text that is no such number or out of range.
  std::int64_t Integer(const std::string& name, std::int64_t minimum, std::int64_t maximum) const;
  double Number(const std::string& name, double minimum, double maximum) const;
  bool Switch(const std::string& name) const;

  std::string Help() const;

 private:
  const ArgumentSpec* Find(const std::string& name) const;
  [[noreturn]] void Refuse(const std::string& message) const;

  const std::string command_;
  const std::string summary_;
  const std::vector<ArgumentSpec> specs_;
  std::map<std::string, std::string> values_;
};

}  // namespace offshoot::trainer
