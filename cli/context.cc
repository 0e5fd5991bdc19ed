#include "cli/context.h"

#include <google/protobuf/util/json_util.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cli/exit_code.h"

namespace offshoot::cli {
namespace {

std::string ToJson(const google::protobuf::Message& message, bool several_lines) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = several_lines;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  if (!status.ok()) text = "{}";
  if (!several_lines) text += '\n';
  return text;
}

}  // namespace

Context::Context(Streams streams) : streams_(streams) {
  // Not CLI11's envname: it would set the address again after the command's own option.
  const char* address = std::getenv("OFFSHOOT_COORDINATOR");
  if (address != nullptr && *address != '\0') coordinator_ = address;
  if (const char* ca = std::getenv("OFFSHOOT_CA"); ca != nullptr) security_.ca_file = ca;
  if (const char* token = std::getenv("OFFSHOOT_TOKEN"); token != nullptr) {
    security_.token = token;
  }
}

void Context::AddOutputOption(CLI::App* command) {
  command->add_option("-o,--output-format", output_, "text, or json: the API's own JSON")
      ->check(CLI::IsMember({"text", "json"}))
      ->type_name("FORMAT");
}

void Context::AddClientOptions(CLI::App* command) {
  command
      ->add_option("--coordinator", coordinator_,
                   "the coordinator's address; also from OFFSHOOT_COORDINATOR")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  command->add_option("--wait-ms", wait_ms_, "how long to wait for a coordinator that is away")
      ->check(CLI::Range(0, 3'600'000))
      ->type_name("MS")
      ->capture_default_str();
  command
      ->add_option(
          "--ca", security_.ca_file,
          "PEM file of the CA of the coordinator's certificate: TLS; also from OFFSHOOT_CA")
      ->type_name("FILE");
  AddOutputOption(command);
}

void Context::SetAction(CLI::App* command, std::function<int()> action) {
  // A verb's callback comes before that of the family it stands in: the first one counts.
  command->callback([this, action = std::move(action)] {
    if (action_ == nullptr) action_ = action;
  });
}

Client& Context::client() const {
  if (client_ == nullptr) {
    client_ = std::make_unique<Client>(coordinator_, wait(), MakeCredentials(security_));
  }
  return *client_;
}

int Context::Fail(const absl::Status& status) const {
  err() << "offshoot: " << std::string(status.message()) << "\n" << std::flush;
  return ExitCodeOf(status);
}

void Context::PrintJson(const google::protobuf::Message& message) const {
  out() << ToJson(message, true) << std::flush;
}

void Context::PrintJsonLine(const google::protobuf::Message& message) const {
  out() << ToJson(message, false) << std::flush;
}

}  // namespace offshoot::cli
