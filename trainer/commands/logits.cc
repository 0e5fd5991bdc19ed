// logits: what the model computes, for comparison with any other implementation.

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <cstdio>
#include <string>

#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_arguments.h"
#include "trainer/error.h"
#include "trainer/lora/lora_set.h"
#include "trainer/models/decoder.h"
#include "trainer/prepared_job.h"
#include "trainer/train_spec.h"
#include "trainer/weights/safetensors.h"

namespace offshoot::trainer {
namespace {

struct Inputs {
  at::Tensor ids;                     // int64 [B, S]
  std::vector<std::int64_t> lengths;  // tokens of each row, right-padded
};

[[noreturn]] void Fail(const std::string& path, const std::string& why) {
  throw Error(Reason::kBadData, path + ": " + why);
}

Inputs ReadInputs(const std::string& path, std::int64_t vocab_size) {
  const auto file = SafetensorsFile::Open(path);
  if (!file->Has("input_ids")) Fail(path, "has no tensor input_ids (int64, [batch, sequence]).");
  Inputs inputs;
  inputs.ids = file->Get("input_ids").to(at::kLong);
  if (inputs.ids.dim() != 2 || inputs.ids.numel() == 0) {
    Fail(path, "input_ids must be [batch, sequence] and not empty.");
  }
  const std::int64_t width = inputs.ids.size(1);
  at::Tensor mask;
  if (file->Has("attention_mask")) {
    mask = file->Get("attention_mask").to(at::kLong);
    if (mask.sizes() != inputs.ids.sizes()) {
      Fail(path, "attention_mask must have the shape of input_ids.");
    }
  }
  for (std::int64_t row = 0; row < inputs.ids.size(0); ++row) {
    std::int64_t length = width;
    if (mask.defined()) {
      length = mask[row].sum().item<std::int64_t>();
      const bool prefix = length >= 0 && length <= width &&
                          mask[row].slice(0, 0, length).eq(1).all().item<bool>() &&
                          mask[row].slice(0, length).eq(0).all().item<bool>();
      if (!prefix) Fail(path, "attention_mask must be ones followed by zeros in each row.");
    }
    inputs.lengths.push_back(length);
    const at::Tensor used = inputs.ids[row].slice(0, 0, length);
    if (length > 0 &&
        (used.min().item<std::int64_t>() < 0 || used.max().item<std::int64_t>() >= vocab_size)) {
      Fail(path, "input_ids has an id outside of the model's vocabulary of " +
                     std::to_string(vocab_size) + ".");
    }
  }
  return inputs;
}

TokenBatch RowBatch(const Inputs& inputs, std::int64_t row) {
  const std::int64_t length = inputs.lengths[static_cast<std::size_t>(row)];
  TokenBatch batch;
  batch.tokens = inputs.ids[row].slice(0, 0, length).contiguous();
  batch.positions = at::arange(length, at::kLong);
  batch.row_offsets = {0, length};
  batch.rows = {row};
  return batch;
}

int WriteLogits(const Arguments& arguments) {
  SetThreads(arguments.Integer("threads", 1, 4096));
  CheckDevice(arguments.Text("device"));
  const BaseModelFiles files = OpenBaseModel(arguments.Text("model"));
  const DecoderOptions options{.dtype = ParseDtype(arguments.Text("dtype")),
                               .device = arguments.Text("device"),
                               .quantisation = QuantisationFrom(arguments)};
  const std::unique_ptr<Decoder> decoder = Decoder::Load(files, options);
  const std::unique_ptr<LoraSet> adapters =
      arguments.Has("adapter") ? LoraSet::Load(*decoder, arguments.Text("adapter")) : nullptr;
  const Inputs inputs = ReadInputs(arguments.Text("input"), decoder->spec().vocab_size);
  const at::NoGradGuard no_grad;
  ForwardOptions forward;
  forward.rotary_length = inputs.ids.size(1);  // dynamic rope: as a padded batch of transformers
  at::Tensor logits =
      at::zeros({inputs.ids.size(0), inputs.ids.size(1), decoder->spec().vocab_size}, at::kFloat);
  for (std::int64_t row = 0; row < inputs.ids.size(0); ++row) {
    const std::int64_t length = inputs.lengths[static_cast<std::size_t>(row)];
    if (length == 0) continue;
    const at::Tensor hidden = decoder->Forward(RowBatch(inputs, row), adapters.get(), forward);
    logits[row].slice(0, 0, length).copy_(decoder->head()->Forward(hidden));
  }
  WriteSafetensors(arguments.Text("output"), {{"logits", logits}});
  return kExitDone;
}

}  // namespace

int RunLogits(const std::vector<std::string>& words) {
  Arguments arguments(
      "logits", "the logits of given tokens, as a safetensors file",
      {{"model", "PATH", "base model: a directory or a GGUF file", true},
       {"adapter", "DIR", "adapter on top of it"},
       {"input", "FILE", "safetensors with input_ids, attention_mask (int64, right-padded)", true},
       {"output", "FILE", "safetensors with logits (float32, [batch, sequence, vocab])", true},
       {"dtype", "DTYPE", "float32 or bfloat16", false, "float32"},
       {"device", "DEVICE", "cpu or cuda:0", false, "cpu"},
       LoadIn4Bit(),
       LoadIn8Bit(),
       {"threads", "N", "CPU threads", false, std::to_string(at::get_num_threads())}});
  if (!arguments.Parse(words)) return kExitDone;
  return WriteLogits(arguments);
}

}  // namespace offshoot::trainer
