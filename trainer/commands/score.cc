// score: loss and perplexity of a model, with or without an adapter, on a data set; row by row if
// wanted. Loads what is on disk, so it scores a published derivative as anyone else would.

#include <ATen/Parallel.h>

#include <cmath>
#include <cstdio>
#include <string>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_arguments.h"
#include "trainer/data/dataset.h"
#include "trainer/error.h"
#include "trainer/evaluation.h"
#include "trainer/events.h"
#include "trainer/lora/lora_set.h"
#include "trainer/models/family.h"
#include "trainer/prepared_job.h"
#include "trainer/train_spec.h"
#include "trainer/weights/durable_file.h"

namespace offshoot::trainer {
namespace {

std::string RowsAsJsonLines(const Dataset& data, const std::vector<LossSum>& rows) {
  std::string text;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto index = static_cast<std::int64_t>(row);
    text += nlohmann::json{{"row", data.line(index)},
                           {"loss", EncodeNumber(rows[row].Mean())},
                           {"tokens", rows[row].tokens}}
                .dump() +
            "\n";
  }
  return text;
}

int Score(const Arguments& arguments) {
  const at::ScalarType dtype = ParseDtype(arguments.Text("dtype"));
  const std::int64_t threads = arguments.Integer("threads", 1, 4096);
  SetThreads(threads);
  CheckDevice(arguments.Text("device"));
  const BaseModelFiles files = OpenBaseModel(arguments.Text("model"));
  const std::unique_ptr<Tokenizer> tokenizer = HasTokenizer(files) ? OpenTokenizer(files) : nullptr;
  DataOptions options;
  options.sources.push_back(
      {arguments.Text("data"), ParseDataType(arguments.Text("type")), /*digest=*/""});
  options.sequence_len = arguments.Integer("sequence-len", 2, 1 << 22);
  options.vocab_size = ReadArchSpec(files.config).vocab_size;
  options.threads = static_cast<int>(threads);
  const DataSplit data = LoadData(options, tokenizer.get(), arguments.Text("model"));
  const std::unique_ptr<Decoder> decoder =
      Decoder::Load(files, DecoderOptions{.dtype = dtype,
                                          .device = arguments.Text("device"),
                                          .quantisation = QuantisationFrom(arguments)});
  const std::unique_ptr<LoraSet> adapters =
      arguments.Has("adapter") ? LoraSet::Load(*decoder, arguments.Text("adapter")) : nullptr;
  const EvaluationOptions batches = {.rows_per_batch = arguments.Integer("batch-size", 1, 4096)};
  const std::vector<LossSum> rows = EvaluateRows(
      *decoder, adapters.get(), *data.train,
      SequentialBatches(*data.train, batches.rows_per_batch, batches.max_tokens_per_batch),
      batches);
  LossSum total;
  for (const LossSum& row : rows) {
    total.loss += row.loss;
    total.tokens += row.tokens;
  }
  if (arguments.Has("output")) {
    WriteFileDurably(arguments.Text("output"), RowsAsJsonLines(*data.train, rows));
  }
  const nlohmann::json summary = {{"loss", EncodeNumber(total.Mean())},
                                  {"perplexity", EncodeNumber(std::exp(total.Mean()))},
                                  {"tokens", total.tokens},
                                  {"rows", data.train->size()},
                                  {"dropped_rows", data.counts.dropped_rows}};
  std::printf("%s\n", summary.dump().c_str());
  return kExitDone;
}

}  // namespace

int RunScore(const std::vector<std::string>& words) {
  Arguments arguments(
      "score", "loss and perplexity of a model on a data set; prints one JSON object",
      {{"model", "PATH", "base model: a directory or a GGUF file", true},
       {"adapter", "DIR", "adapter on top of it"},
       {"data", "FILE", "rows to score (JSONL)", true},
       {"type", "TYPE", "chat, completion, text or pretokenized", true},
       {"output", "FILE", "each row's loss as JSON lines: row, loss, tokens"},
       {"dtype", "DTYPE", "float32 or bfloat16", false, "float32"},
       {"device", "DEVICE", "cpu or cuda:0", false, "cpu"},
       {"sequence-len", "N", "tokens of a row; longer ones are cut", false, "1024"},
       {"batch-size", "N", "rows of a forward pass", false, "8"},
       LoadIn4Bit(),
       LoadIn8Bit(),
       {"threads", "N", "CPU threads", false, std::to_string(at::get_num_threads())}});
  if (!arguments.Parse(words)) {
    return kExitDone;
  }
  return Score(arguments);
}

}  // namespace offshoot::trainer
