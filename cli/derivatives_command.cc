// derivatives: list, show, check; and pull.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "cli/format.h"
#include "cli/loader_check.h"
#include "cli/pull.h"
#include "common/quantity.h"

namespace offshoot::cli {
namespace {

struct ListDerivativesOptions {
  std::string base_model_digest;
  std::string team;
};

int ListDerivatives(const Context& context, const ListDerivativesOptions& options) {
  Client& client = context.client();
  v1::ListDerivativesRequest request;
  request.set_base_model_digest(options.base_model_digest);
  request.set_team(options.team);
  v1::ListDerivativesResponse all;
  do {
    const auto page = client.Call(client.models(), &v1::Models::Stub::ListDerivatives, request);
    if (!page.ok()) return context.Fail(page.status());
    all.mutable_derivatives()->MergeFrom(page->derivatives());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  if (context.json()) {
    context.PrintJson(all);
    return kOk;
  }
  std::vector<std::vector<std::string>> rows{
      {"DERIVATIVE", "NAME", "BASE", "BASE LOSS", "LOSS", "SIZE", "AGE", "JOB"}};
  for (const v1::Derivative& derivative : all.derivatives()) {
    rows.push_back({derivative.derivative_id(), derivative.name(),
                    derivative.base_model_id().empty()
                        ? derivative.base_model_digest().substr(0, 19)
                        : derivative.base_model_id(),
                    derivative.has_base_eval_loss() ? FormatLoss(derivative.base_eval_loss()) : "-",
                    derivative.has_eval_loss() ? FormatLoss(derivative.eval_loss()) : "-",
                    FormatBytes(derivative.size_bytes()),
                    FormatAge(derivative.created_time(), absl::Now()), derivative.job_id()});
  }
  context.out() << FormatTable(rows) << std::flush;
  return kOk;
}

int ShowDerivative(const Context& context, const std::string& derivative_id) {
  Client& client = context.client();
  const auto derivative = GetDerivative(client, derivative_id);
  if (!derivative.ok()) return context.Fail(derivative.status());
  if (context.json()) {
    context.PrintJson(*derivative);
    return kOk;
  }
  std::vector<std::vector<std::string>> rows{
      {"derivative", derivative->derivative_id()},
      {"name", derivative->name()},
      {"job", derivative->job_id()},
      {"base model", derivative->base_model_id().empty() ? "-" : derivative->base_model_id()},
      {"base digest", derivative->base_model_digest()},
      {"digest", derivative->digest()},
      {"size", FormatBytes(derivative->size_bytes())},
      {"published", FormatTime(derivative->created_time())}};
  if (derivative->has_eval_loss()) {
    rows.push_back(
        {"held-out loss",
         absl::StrCat(derivative->has_base_eval_loss()
                          ? absl::StrCat("base ", FormatLoss(derivative->base_eval_loss()), ", ")
                          : "",
                      "derivative ", FormatLoss(derivative->eval_loss()))});
  }
  for (const v1::Push& push : derivative->pushes()) {
    rows.push_back(
        {"pushed to", absl::StrCat(push.target(), ": ", push.state(),
                                   push.commit().empty() ? "" : " at " + push.commit(),
                                   push.message().empty() ? "" : ", " + push.message())});
  }
  context.out() << FormatTable(rows);
  rows.clear();
  for (const v1::File& file : derivative->files()) {
    rows.push_back({"  " + file.path(), FormatBytes(file.size_bytes()), file.digest()});
  }
  context.out() << FormatTable(rows) << std::flush;
  return kOk;
}

int Pull(const Context& context, const std::string& derivative_id, const std::string& directory) {
  Client& client = context.client();
  const auto derivative = GetDerivative(client, derivative_id);
  if (!derivative.ok()) return context.Fail(derivative.status());
  const absl::Status status = PullDerivative(client, *derivative, directory, Existing::kKeep);
  if (!status.ok()) return context.Fail(status);
  if (context.json()) {
    context.PrintJson(*derivative);
  } else {
    context.out() << "derivative " << derivative_id << " lies in " << directory << " ("
                  << FormatBytes(derivative->size_bytes()) << ")\n"
                  << std::flush;
  }
  return kOk;
}

// The first bytes of a file; empty when it is not there.
std::string ReadBeginning(Client& client, const v1::Derivative& derivative, const std::string& path,
                          std::size_t max_bytes) {
  grpc::ClientContext context;
  v1::DownloadFileRequest request;
  request.set_derivative_id(derivative.derivative_id());
  request.set_path(path);
  const auto stream = client.models().DownloadFile(&context, request);
  std::string bytes;
  for (v1::FileChunk chunk; bytes.size() < max_bytes && stream->Read(&chunk);)
    bytes += chunk.data();
  context.TryCancel();
  (void)stream->Finish();
  return bytes.substr(0, max_bytes);
}

// Names in a safetensors file: its first 8 bytes are the length of a JSON object keyed by them.
std::vector<std::string> TensorNames(const std::string& beginning) {
  std::vector<std::string> names;
  if (beginning.size() < 8) return names;
  std::uint64_t length = 0;
  std::memcpy(&length, beginning.data(), sizeof(length));
  const auto header = nlohmann::json::parse(
      beginning.substr(8,
                       static_cast<std::size_t>(std::min<std::uint64_t>(length, beginning.size()))),
      nullptr, false);
  if (!header.is_object()) return names;
  for (const auto& [name, tensor] : header.items()) names.push_back(name);
  return names;
}

int Check(const Context& context, const std::string& derivative_id) {
  constexpr std::size_t kMaxConfigBytes = 4 << 20;
  constexpr std::size_t kMaxHeaderBytes = 32 << 20;
  Client& client = context.client();
  const auto derivative = GetDerivative(client, derivative_id);
  if (!derivative.ok()) return context.Fail(derivative.status());
  LoadableDerivative loadable;
  for (const v1::File& file : derivative->files()) loadable.paths.push_back(file.path());
  loadable.adapter_config =
      ReadBeginning(client, *derivative, "adapter_config.json", kMaxConfigBytes);
  loadable.merged_config =
      ReadBeginning(client, *derivative, "merged/config.json", kMaxConfigBytes);
  loadable.adapter_tensors =
      TensorNames(ReadBeginning(client, *derivative, "adapter_model.safetensors", kMaxHeaderBytes));
  const std::vector<LoaderVerdict> verdicts = CheckLoaders(loadable);
  if (context.json()) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const LoaderVerdict& verdict : verdicts) {
      list.push_back(
          {{"loader", verdict.loader}, {"takes", verdict.takes}, {"detail", verdict.detail}});
    }
    context.out() << list.dump(2) << "\n" << std::flush;
    return kOk;
  }
  std::vector<std::vector<std::string>> rows{{"LOADER", "TAKES IT", "HOW, OR WHY NOT"}};
  for (const LoaderVerdict& verdict : verdicts) {
    rows.push_back({verdict.loader, verdict.takes ? "yes" : "no", verdict.detail});
  }
  context.out() << FormatTable(rows) << std::flush;
  return kOk;
}

}  // namespace

void AddDerivativeCommands(CLI::App& app, Context& context) {
  auto options = std::make_shared<ListDerivativesOptions>();
  CLI::App* derivatives = app.add_subcommand("derivatives", "List and show what jobs published");
  derivatives->require_subcommand(0, 1);
  CLI::App* list = derivatives->add_subcommand("list", "List derivatives, newest first");
  for (CLI::App* command : {derivatives, list}) {
    command->add_option("--base", options->base_model_digest, "only those of this base model")
        ->type_name("DIGEST");
    command->add_option("--team", options->team, "only this team's");
    context.AddClientOptions(command);
    context.SetAction(command, [&context, options] { return ListDerivatives(context, *options); });
  }

  auto derivative_id = std::make_shared<std::string>();
  CLI::App* show = derivatives->add_subcommand("show", "Show a derivative and its files");
  show->add_option("derivative", *derivative_id, "its id")->required()->type_name("DERIVATIVE");
  context.AddClientOptions(show);
  context.SetAction(show,
                    [&context, derivative_id] { return ShowDerivative(context, *derivative_id); });

  CLI::App* check = derivatives->add_subcommand(
      "check", "Say which programs will load a derivative, and why others will not");
  check->add_option("derivative", *derivative_id, "its id")->required()->type_name("DERIVATIVE");
  context.AddClientOptions(check);
  context.SetAction(check, [&context, derivative_id] { return Check(context, *derivative_id); });

  auto directory = std::make_shared<std::string>();
  CLI::App* pull = app.add_subcommand(
      "pull", "Fetch a derivative into a directory; called again it goes on where it stopped");
  pull->add_option("derivative", *derivative_id, "its id")->required()->type_name("DERIVATIVE");
  pull->add_option("directory", *directory, "absent or empty")->required()->type_name("DIR");
  context.AddClientOptions(pull);
  context.SetAction(pull, [&context, derivative_id, directory] {
    return Pull(context, *derivative_id, *directory);
  });
}

}  // namespace offshoot::cli
