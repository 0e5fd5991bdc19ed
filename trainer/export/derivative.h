// The derivative: everything a job publishes, in one directory.
//
//   adapter_model.safetensors, adapter_config.json   the PEFT adapter
//   README.md                                        the model card
//   offshoot.json                                    lineage: written last, names every other file
//   training_metrics.jsonl
//   merged/                                          the merged model, if asked
//   model.gguf, adapter.gguf                         the same for llama.cpp, if asked
//
// Built beside its place and renamed, so that it is whole or absent; writing it again replaces it.
// Thread-safe for different directories. Errors: Error(kBadModel), Error(kDiskFull).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "trainer/export/merged_model.h"
#include "trainer/lora/lora_set.h"
#include "trainer/models/decoder.h"
#include "trainer/tokenizer/tokenizer.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

struct DerivativeDataset {
  std::string type;
  std::string digest;
};

struct DerivativeRequest {
  // What it is made of. Borrowed.
  const BaseModelFiles* base = nullptr;
  const Decoder* decoder = nullptr;  // weights need not be loaded
  const LoraSet* adapters = nullptr;
  const Tokenizer* tokenizer = nullptr;  // may be null: then merged/ has no tokenizer files

  std::string directory;  // DIR/result
  std::string name;       // for the card; empty: "derivative"
  std::string job_id;
  std::int64_t attempt = 0;         // this one's number; 0: one more than lineage names
  std::string base_model_id;        // hub name, may be empty
  std::string base_model_revision;  // may be empty
  std::string base_digest;          // may be empty
  std::vector<DerivativeDataset> datasets;
  std::vector<std::string> dataset_ids;  // hub names for the card; usually none

  bool merged = false;
  MergedModelOptions merged_options;
  std::string gguf_type;  // F32, F16, BF16, Q8_0; empty: no GGUF files
  // How the base was kept while the adapter was trained; merged models are of its own weights.
  Quantisation quantisation = Quantisation::kNone;

  nlohmann::json lineage;   // the spec's `lineage` (docs/trainer-protocol.md), or null
  nlohmann::json settings;  // the training settings with defaults filled in; no local paths
  bool reproducible = false;
  nlohmann::json
      environment;  // what reproducibility fixed: threads, world size, instruction set, ...

  std::int64_t first_step = 0;  // of this attempt; the earlier ones are in lineage
  std::int64_t last_step = 0;
  std::optional<double> base_eval_loss;
  std::optional<double> eval_loss;
  std::int64_t eval_tokens = 0;
  nlohmann::json samples = nlohmann::json::array();  // [{prompt, base, derivative}]
  std::string metrics_path;  // copied to training_metrics.jsonl; empty or absent: left out
};

void WriteDerivative(const DerivativeRequest& request);

}  // namespace offshoot::trainer
