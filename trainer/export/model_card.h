// README.md with the front matter that model hubs read. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "trainer/ops/quantisation.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

struct License {
  std::string id;    // apache-2.0, mit, llama3.2, other; empty: not known, and nothing is written
  std::string name;  // license_name and license_link, for "other"
  std::string link;
};

// From the base's own words only, never from its family: the front matter of its README.md, the
// licence file if its text is a known one, or a GGUF file's general.license.
License FindLicense(const BaseModelFiles& base);

struct ModelCard {
  std::string name;           // of the derivative
  std::string base_model_id;  // hub name; empty: no base_model is claimed
  std::string base_digest;
  License license;
  std::vector<std::string> dataset_ids;  // hub names only, never paths
  std::optional<double> base_eval_loss;  // nats per trained token of the held-out rows
  std::optional<double> eval_loss;
  std::int64_t eval_tokens = 0;
  std::int64_t steps = 0;
  bool has_merged = false;
  bool has_gguf = false, has_gguf_adapter = false;
  Quantisation quantisation = Quantisation::kNone;  // of the base while it was trained
  nlohmann::json settings;                          // shown as a table: name -> value
};

std::string FormatModelCard(const ModelCard& card);

}  // namespace offshoot::trainer
