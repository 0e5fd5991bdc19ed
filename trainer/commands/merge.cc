// merge: base and adapter as one plain model.

#include <ATen/Parallel.h>

#include <cstdio>
#include <memory>
#include <string>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/error.h"
#include "trainer/export/gguf_export.h"
#include "trainer/export/merged_model.h"
#include "trainer/export/result_directory.h"
#include "trainer/lora/lora_set.h"
#include "trainer/models/decoder.h"
#include "trainer/prepared_job.h"
#include "trainer/train_spec.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {
namespace {

std::string NameOf(const std::string& path) {
  const std::string name = std::filesystem::path(path).stem().string();
  return name.empty() ? "merged" : name;
}

int Merge(const Arguments& arguments) {
  SetThreads(arguments.Integer("threads", 1, 4096));
  const std::string& output = arguments.Text("output");
  const BaseModelFiles base = OpenBaseModel(arguments.Text("model"));
  MergedModelOptions options;
  options.dtype = ParseDtype(arguments.Text("dtype"));
  options.shard_bytes = arguments.Integer("shard-bytes", 1, std::int64_t{1} << 50);
  const std::unique_ptr<Decoder> decoder =
      Decoder::Load(base, {.dtype = at::kFloat, .load_weights = false});
  const std::unique_ptr<LoraSet> adapters = LoraSet::Load(*decoder, arguments.Text("adapter"));
  const AdapterByPath by_path = AdaptersByPath(*decoder, *adapters);
  const std::unique_ptr<Tokenizer> tokenizer = HasTokenizer(base) ? OpenTokenizer(base) : nullptr;
  std::fprintf(stderr, "merging into %s: its own weights%s\n", base.path.c_str(),
               base.is_gguf ? ", as dequantised" : "");
  if (arguments.Has("gguf")) {
    if (tokenizer == nullptr) {
      throw Error(Reason::kBadModel,
                  base.path + ": has no tokenizer (tokenizer.json), and a GGUF file needs one inside.");
    }
    WriteMergedGguf(base, *decoder, by_path, *tokenizer, output, arguments.Text("gguf"),
                    NameOf(output));
    return kExitDone;
  }
  if (tokenizer == nullptr) {
    std::fprintf(stderr, "the base has no tokenizer, so the merged model has none either\n");
  }
  ResultDirectory directory(output);
  WriteMergedModel(base, by_path, tokenizer.get(), directory.path(), options);
  directory.Commit();
  return kExitDone;
}

}  // namespace

int RunMerge(const std::vector<std::string>& words) {
  Arguments arguments(
      "merge", "base and adapter as one plain model, in the dtype the base is stored in",
      {{"model", "PATH", "base model: a directory or a GGUF file", true},
       {"adapter", "DIR", "PEFT adapter to merge into it", true},
       {"output", "PATH", "a directory, or with --gguf a file; replaced if it is there", true},
       {"gguf", "TYPE", "write a GGUF file with matrices as F32, F16, BF16 or Q8_0"},
       {"dtype", "DTYPE", "of what the base stores quantised: float32 or bfloat16", false,
        "bfloat16"},
       {"shard-bytes", "N", "a safetensors file grows no larger", false, "5000000000"},
       {"threads", "N", "CPU threads", false, std::to_string(at::get_num_threads())}});
  if (!arguments.Parse(words)) return kExitDone;
  return Merge(arguments);
}

}  // namespace offshoot::trainer
