// What every command that trains or checks needs first: base model, tokenizer and data. Weights are
// loaded while the data is tokenised. Functions are thread-safe.
#pragma once

#include <memory>
#include <string>

#include "trainer/data/dataset.h"
#include "trainer/events.h"
#include "trainer/models/decoder.h"
#include "trainer/tokenizer/tokenizer.h"
#include "trainer/train_spec.h"
#include "trainer/weights/tensor_source.h"

namespace offshoot::trainer {

struct PreparedJob {
  BaseModelFiles files;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Decoder> decoder;
  DataSplit data;
};

// cache_directory: for tokenised data; empty: none. Emits the stages loading and tokenizing. Throws
// Error(kBadModel), Error(kBadData).
PreparedJob PrepareJob(const TrainSpec& spec, const std::string& cache_directory, bool load_weights,
                       EventWriter& events);

// Whether the base model comes with a tokenizer; without one only pretokenized rows can be trained.
bool HasTokenizer(const BaseModelFiles& files);
// The tokenizer of an opened base model. Throws Error(kBadModel) if there is none.
std::unique_ptr<Tokenizer> OpenTokenizer(const BaseModelFiles& files);

// Sets the number of threads of tensor operations in this process. Call once, early.
void SetThreads(std::int64_t threads);

// "cpu", or "cuda:N" in builds that have it; throws Error(kBadSpec) for anything else.
void CheckDevice(const std::string& device);

}  // namespace offshoot::trainer
