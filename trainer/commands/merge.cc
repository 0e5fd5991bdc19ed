// merge: base and adapter as one plain model.

#include <ATen/Parallel.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/export/merged_model.h"
#include "trainer/export/result_directory.h"
#include "trainer/lora/lora_set.h"
#include "trainer/models/decoder.h"
#include "trainer/prepared_job.h"
#include "trainer/train_spec.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {
namespace {

bool HasTokenizer(const BaseModelFiles& base) {
  return base.is_gguf ? base.gguf_metadata.contains("tokenizer.ggml.tokens")
                      : std::filesystem::exists(base.path + "/tokenizer.json");
}

int Merge(const Arguments& arguments) {
  SetThreads(arguments.Integer("threads", 1, 4096));
  const BaseModelFiles base = OpenBaseModel(arguments.Text("model"));
  MergedModelOptions options;
  options.dtype = ParseDtype(arguments.Text("dtype"));
  options.shard_bytes = arguments.Integer("shard-bytes", 1, std::int64_t{1} << 50);
  const std::unique_ptr<Decoder> decoder =
      Decoder::Load(base, {.dtype = at::kFloat, .load_weights = false});
  const std::unique_ptr<LoraSet> adapters = LoraSet::Load(*decoder, arguments.Text("adapter"));
  std::unique_ptr<Tokenizer> tokenizer;
  if (HasTokenizer(base)) {
    tokenizer = OpenTokenizer(base);
  } else {
    std::fprintf(stderr, "the base has no tokenizer, so the merged model has none either\n");
  }
  ResultDirectory output(arguments.Text("output"));
  WriteMergedModel(base, AdaptersByPath(*decoder, *adapters), tokenizer.get(), output.path(),
                   options);
  output.Commit();
  return kExitDone;
}

}  // namespace

int RunMerge(const std::vector<std::string>& words) {
  Arguments arguments(
      "merge", "base and adapter as one plain model, in the dtype the base is stored in",
      {{"model", "PATH", "base model: a directory or a GGUF file", true},
       {"adapter", "DIR", "PEFT adapter to merge into it", true},
       {"output", "DIR", "the merged model; replaced if it is there", true},
       {"dtype", "DTYPE", "of what the base stores quantised: float32 or bfloat16", false,
        "bfloat16"},
       {"shard-bytes", "N", "a safetensors file grows no larger", false, "5000000000"},
       {"threads", "N", "CPU threads", false, std::to_string(at::get_num_threads())}});
  if (!arguments.Parse(words)) return kExitDone;
  return Merge(arguments);
}

}  // namespace offshoot::trainer
