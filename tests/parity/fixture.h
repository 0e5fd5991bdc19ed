// A parity fixture: a tiny model with what transformers and PEFT computed on it. make_fixtures.py
// writes them; this reads them.
//
//   CASE/model/            config.json (config.hub.json: the spelling of older files), safetensors
//   CASE/inputs.safetensors     input_ids, attention_mask, labels (not shifted), int64 [B, S]
//   CASE/outputs.safetensors    logits float32 [B, S, V] of the base
//   CASE/lora*/            PEFT adapters at the start; CASE/lora*_final/ after the steps
//   CASE/lora*_outputs.safetensors  logits at the start, grad.<tensor> of the first step
//   CASE/expected.json     losses, optimizer, traces
#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "trainer/data/token_batch.h"
#include "trainer/models/decoder.h"

namespace offshoot::trainer {

struct Fixture {
  std::string name, path;
  nlohmann::json expected;
  at::Tensor input_ids, attention_mask, labels;

  bool HasFile(const std::string& file) const;
  std::string File(const std::string& file) const { return path + "/" + file; }
  // Names of the adapter variants ("lora", "lora_experts") that have a trace.
  std::vector<std::string> TrainedVariants() const;
  // config.json and, if it is there, config.hub.json.
  std::vector<std::string> ConfigFiles() const;
  std::unique_ptr<Decoder> Load(const std::string& config_file = "config.json",
                                at::ScalarType dtype = at::kFloat,
                                Quantisation quantisation = Quantisation::kNone) const;
  // All rows packed, or one row alone.
  TokenBatch Batch() const;
  TokenBatch Row(std::int64_t row) const;
  std::int64_t width() const { return input_ids.size(1); }  // with padding
  std::int64_t rows() const { return input_ids.size(0); }
  // Picks the entries of a [B, S, ...] tensor that belong to a token, as the packed rows order
  // them.
  at::Tensor Packed(const at::Tensor& padded) const;
};

// The committed fixtures and those of the directories in $OFFSHOOT_FIXTURES (separated by ':'), by
// the path of each case.
std::vector<std::string> FixturePaths();
Fixture ReadFixture(const std::string& path);

// The largest absolute difference; infinity if shapes differ or a value is no number.
double LargestDifference(const at::Tensor& a, const at::Tensor& b);

}  // namespace offshoot::trainer
