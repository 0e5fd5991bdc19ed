// A whole job small enough for a unit test: the committed tiny Llama with a tokenizer of words,
// pretokenized rows and a spec. Tests run in the source directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "trainer/testing.h"

namespace offshoot::trainer {

class TinyJob {
 public:
  explicit TinyJob(int rows = 24) {
    namespace fs = std::filesystem;
    fs::create_directory(directory_.File("model"));
    for (const char* name : {"config.json", "model.safetensors"}) {
      fs::copy_file(std::string("tests/parity/fixtures/llama/model/") + name,
                    directory_.File(std::string("model/") + name));
    }
    nlohmann::json vocabulary;
    for (int id = 0; id < 128; ++id) {
      vocabulary["w" + std::to_string(id)] = id;
    }
    directory_.Write(
        "model/tokenizer.json",
        nlohmann::json{
            {"version", "1.0"},
            {"added_tokens", nlohmann::json::array()},
            {"pre_tokenizer", {{"type", "Whitespace"}}},
            {"model", {{"type", "WordLevel"}, {"vocab", vocabulary}, {"unk_token", "w0"}}}}
            .dump());
    directory_.Write("model/tokenizer_config.json",
                     "{\"tokenizer_class\": \"PreTrainedTokenizerFast\"}");
    WriteRows(rows);
  }

  // Rows of 6 to 20 tokens in which each token is its predecessor's neighbour: learnable at once.
  void WriteRows(int rows) {
    std::mt19937 random(5);
    std::string text;
    for (int row = 0; row < rows; ++row) {
      const int length = 6 + static_cast<int>(random() % 15);
      std::vector<int> ids;
      std::vector<int> labels;
      int token = 3 + static_cast<int>(random() % 100);
      for (int i = 0; i < length; ++i) {
        ids.push_back(token);
        labels.push_back(i < 3 ? -100 : token);
        token = 3 + (token - 3 + 1) % 120;
      }
      text += nlohmann::json{{"input_ids", ids}, {"labels", labels}}.dump() + "\n";
    }
    directory_.Write("rows.jsonl", text);
  }

  nlohmann::json Spec() const {
    return {{"spec_version", 1},
            {"job_id", "job-test"},
            {"base_model", {{"path", directory_.File("model")}, {"digest", "sha256:base"}}},
            {"datasets", {{{"path", directory_.File("rows.jsonl")}, {"type", "pretokenized"}}}},
            {"sequence_len", 32},
            {"dtype", "float32"},
            {"lora_r", 4},
            {"lora_alpha", 8},
            {"learning_rate", 1e-2},
            {"weight_decay", 0.01},
            {"per_device_train_batch_size", 2},
            {"gradient_accumulation_steps", 2},
            {"num_train_epochs", 2},
            {"save_steps", 3},
            {"threads", 1}};
  }

  std::string WriteSpec(const std::string& name, const nlohmann::json& spec) const {
    return directory_.Write(name, spec.dump());
  }
  std::string File(const std::string& name) const { return directory_.File(name); }
  const TemporaryDirectory& directory() const { return directory_; }

 private:
  TemporaryDirectory directory_;
};

}  // namespace offshoot::trainer
