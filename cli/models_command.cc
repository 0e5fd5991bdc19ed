// models: list, register, show.
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "cli/context.h"
#include "cli/exit_code.h"
#include "cli/format.h"
#include "cli/upload.h"
#include "common/quantity.h"

namespace offshoot::cli {
namespace {

struct RegisterOptions {
  std::string name;
  std::string path;
  std::string base_model_id;
  std::string license;
  bool upload = false;
};

int ListModels(const Context& context) {
  Client& client = context.client();
  v1::ListBaseModelsRequest request;
  v1::ListBaseModelsResponse all;
  do {
    const auto page = client.Call(client.models(), &v1::Models::Stub::ListBaseModels, request);
    if (!page.ok()) return context.Fail(page.status());
    all.mutable_base_models()->MergeFrom(page->base_models());
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  if (context.json()) {
    context.PrintJson(all);
    return kOk;
  }
  std::vector<std::vector<std::string>> rows{{"NAME", "HUB ID", "LICENSE", "SIZE", "DIGEST"}};
  for (const v1::BaseModel& model : all.base_models()) {
    rows.push_back({model.name(), model.base_model_id().empty() ? "-" : model.base_model_id(),
                    model.license().empty() ? "-" : model.license(),
                    FormatBytes(model.size_bytes()), model.digest().substr(0, 19)});
  }
  context.out() << FormatTable(rows) << std::flush;
  return kOk;
}

void PrintModel(std::ostream& out, const v1::BaseModel& model) {
  out << FormatTable({{"name", model.name()},
                      {"hub id", model.base_model_id().empty() ? "-" : model.base_model_id()},
                      {"license", model.license().empty() ? "-" : model.license()},
                      {"size", FormatBytes(model.size_bytes())},
                      {"digest", model.digest()},
                      {"registered", FormatTime(model.created_time())}});
  std::vector<std::vector<std::string>> rows;
  for (const v1::File& file : model.files()) {
    rows.push_back({"  " + file.path(), FormatBytes(file.size_bytes()), file.digest()});
  }
  out << FormatTable(rows) << std::flush;
}

int ShowModel(const Context& context, const std::string& name) {
  Client& client = context.client();
  v1::GetBaseModelRequest request;
  request.set_name(name);
  const auto model = client.Call(client.models(), &v1::Models::Stub::GetBaseModel, request);
  if (!model.ok()) return context.Fail(model.status());
  if (context.json()) {
    context.PrintJson(*model);
  } else {
    PrintModel(context.out(), *model);
  }
  return kOk;
}

int Register(const Context& context, const RegisterOptions& options) {
  Client& client = context.client();
  v1::RegisterBaseModelRequest request;
  request.set_name(options.name);
  request.set_base_model_id(options.base_model_id);
  request.set_license(options.license);
  const std::string path = std::filesystem::absolute(options.path).lexically_normal().string();
  if (options.upload) {
    const auto files = UploadTree(client, path, nullptr);
    if (!files.ok()) return context.Fail(files.status());
    for (const FileEntry& file : *files) {
      v1::File* entry = request.add_files();
      entry->set_path(file.path);
      entry->set_digest(file.digest);
      entry->set_size_bytes(file.size_bytes);
    }
  } else {
    request.set_path(path);
  }
  const auto model = client.Call(client.models(), &v1::Models::Stub::RegisterBaseModel, request);
  if (!model.ok()) return context.Fail(model.status());
  if (context.json()) {
    context.PrintJson(*model);
  } else {
    PrintModel(context.out(), *model);
  }
  return kOk;
}

}  // namespace

void AddModelCommands(CLI::App& app, Context& context) {
  CLI::App* models = app.add_subcommand("models", "List, register and show base models");
  models->require_subcommand(0, 1);
  context.AddClientOptions(models);
  context.SetAction(models, [&context] { return ListModels(context); });

  CLI::App* list = models->add_subcommand("list", "List base models");
  context.AddClientOptions(list);
  context.SetAction(list, [&context] { return ListModels(context); });

  auto name = std::make_shared<std::string>();
  CLI::App* show = models->add_subcommand("show", "Show a base model and its files");
  show->add_option("name", *name, "its name")->required()->type_name("NAME");
  context.AddClientOptions(show);
  context.SetAction(show, [&context, name] { return ShowModel(context, *name); });

  auto options = std::make_shared<RegisterOptions>();
  CLI::App* add = models->add_subcommand("register", "Give a base model a name");
  add->add_option("name", options->name, "letters, digits, '.', '_', '-', '/'")
      ->required()
      ->type_name("NAME");
  add->add_option("--path", options->path, "a Hugging Face directory or a GGUF file")
      ->required()
      ->type_name("PATH");
  add->add_flag("--upload", options->upload,
                "send the files from here; without it the coordinator reads PATH itself");
  add->add_option("--base-model-id", options->base_model_id, "its name on its hub, for cards")
      ->type_name("ORG/NAME");
  add->add_option("--license", options->license, "its licence, for cards")->type_name("ID");
  context.AddClientOptions(add);
  context.SetAction(add, [&context, options] { return Register(context, *options); });
}

}  // namespace offshoot::cli
