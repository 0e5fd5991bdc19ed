// generate: the model's answer to a prompt, on stdout.

#include "trainer/models/generate.h"

#include <ATen/Parallel.h>

#include <cstdio>
#include <string>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_arguments.h"
#include "trainer/error.h"
#include "trainer/lora/lora_set.h"
#include "trainer/prepared_job.h"
#include "trainer/train_spec.h"

namespace offshoot::trainer {
namespace {

std::vector<std::int64_t> ParseIds(const std::string& text) {
  const nlohmann::json ids = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::vector<std::int64_t> result;
  if (ids.is_array()) {
    for (const nlohmann::json& id : ids) {
      if (!id.is_number_integer()) break;
      result.push_back(id.get<std::int64_t>());
    }
  }
  if (!ids.is_array() || result.size() != ids.size()) {
    throw UsageError("--prompt-ids must be a JSON list of token ids, such as [1, 15, 7].");
  }
  return result;
}

void PrintIds(const std::vector<std::int64_t>& ids) {
  std::printf("%s\n", nlohmann::json(ids).dump().c_str());
}

int Answer(const Arguments& arguments) {
  if (arguments.Has("prompt") == arguments.Has("prompt-ids")) {
    throw UsageError("generate needs either --prompt or --prompt-ids.");
  }
  SetThreads(arguments.Integer("threads", 1, 4096));
  CheckDevice(arguments.Text("device"));
  GenerateOptions options;
  options.max_new_tokens = arguments.Integer("max-new-tokens", 1, 1 << 20);
  options.temperature = arguments.Number("temperature", 0.0, 100.0);
  options.top_p = arguments.Number("top-p", 0.0, 1.0);
  options.top_k = arguments.Integer("top-k", 0, 1 << 20);
  options.seed = static_cast<std::uint64_t>(arguments.Integer("seed", 0, INT64_MAX));
  const BaseModelFiles files = OpenBaseModel(arguments.Text("model"));
  const DecoderOptions load{.dtype = ParseDtype(arguments.Text("dtype")),
                            .device = arguments.Text("device"),
                            .quantisation = QuantisationFrom(arguments)};
  // Ids in, ids out needs no tokenizer.
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<std::int64_t> prompt;
  if (arguments.Has("prompt-ids")) {
    prompt = ParseIds(arguments.Text("prompt-ids"));
  } else {
    tokenizer = OpenTokenizer(files);
    prompt = EncodePrompt(*tokenizer, arguments.Text("prompt"), arguments.Switch("raw"));
    options.stop_ids = StopIds(*tokenizer, files);
  }
  const std::unique_ptr<Decoder> decoder = Decoder::Load(files, load);
  const std::unique_ptr<LoraSet> adapters =
      arguments.Has("adapter") ? LoraSet::Load(*decoder, arguments.Text("adapter")) : nullptr;
  const Generation answer = Generate(*decoder, adapters.get(), prompt, options);
  if (tokenizer == nullptr || arguments.Switch("ids")) {
    PrintIds(answer.ids);
  } else {
    std::printf("%s\n", tokenizer->Decode(answer.ids, /*skip_special_tokens=*/true).c_str());
  }
  return kExitDone;
}

}  // namespace

int RunGenerate(const std::vector<std::string>& words) {
  Arguments arguments(
      "generate", "the model's answer to a prompt",
      {{"model", "PATH", "base model: a directory or a GGUF file", true},
       {"adapter", "DIR", "adapter on top of it"},
       {"prompt", "TEXT", "what the user says"},
       {"prompt-ids", "JSON", "token ids instead of text; prints ids and stops at no token"},
       {"raw", "", "continue the text as it is, without the chat template"},
       {"ids", "", "print token ids instead of text"},
       {"max-new-tokens", "N", "at most this many tokens", false, "256"},
       {"temperature", "T", "0 takes the likeliest token each time", false, "0"},
       {"top-p", "P", "sample among the likeliest tokens that reach this probability", false, "1"},
       {"top-k", "K", "sample among this many tokens; 0: all", false, "0"},
       {"seed", "S", "of the sampling", false, "0"},
       {"dtype", "DTYPE", "float32 or bfloat16", false, "float32"},
       {"device", "DEVICE", "cpu or cuda:0", false, "cpu"},
       LoadIn4Bit(),
       LoadIn8Bit(),
       {"threads", "N", "CPU threads", false, std::to_string(at::get_num_threads())}});
  if (!arguments.Parse(words)) return kExitDone;
  return Answer(arguments);
}

}  // namespace offshoot::trainer
